// The gradients by wgmma: sm_90a (docs/kernels/cuda-backward.md). One kernel for dq and for dk and dv, see
// backward/sides.h.
//
// One warpgroup copies the rows walked, through a ring of stages; copies row by row rather than by TMA, so that [A | B]
// needs no tail steps of its own and no tensor maps: eight copies of a thread feed what keeps the tensor cores busy for
// 1024 clocks. The others own 64 rows each. Their products overlap with the exponentials of one another, and in a
// warpgroup with its own:
//
//     issue S, dP    wait S    P    issue d_second += P Y    wait dP    dS    issue d_first += dS Y    wait
#pragma once
#include "backward/hopper/config.h"
#include "backward/sides.h"

namespace hopper {

// mbarriers of a ring of stages, at the start of shared memory. "full": copied. "empty": no longer read.
template <class C>
struct Stages {
    uint32_t base;

    DEVICE uint32_t full(int stage) const { return base + 16 * stage; }
    DEVICE uint32_t empty(int stage) const { return full(stage) + 8; }
    DEVICE uint32_t stage(int stage) const { return base + C::kStagesBytes + stage * C::kStageBytes; }

    // Each warp signs for itself, after the reads of all its lanes.
    DEVICE void release(int stage) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) dev::mbar_arrive(empty(stage));
    }

    DEVICE void init() const {
        if (threadIdx.x == 0) {
            for (int stage = 0; stage < C::kStages; ++stage) {
                dev::mbar_init(full(stage), C::kCopyThreads);
                dev::mbar_init(empty(stage), 4 * C::kConsumers);  // warps
            }
            dev::fence_mbar_init();
        }
        __syncthreads();
    }
};

// Says that this thread's copies of a step have landed; wgmma reads them through another proxy.
template <class C>
DEVICE void publish(const Stages<C>& stages, int step) {
    dev::fence_proxy_async();
    dev::mbar_arrive(stages.full(step % C::kStages));
}

template <class C>
DEVICE void copy_all(const GradientParams& p, const Stages<C>& stages, const backward::Place<C>& place) {
    backward::Walk<C> walk(p, place);
    const int steps = walk.steps();
    if (steps > 0) place.copy(p, stages.base + C::kOwnBytes);  // arrives with step 0
    for (int i = 0; i < steps; ++i) {
        const int stage = i % C::kStages;
        dev::mbar_wait(stages.empty(stage), i / C::kStages % 2 ^ 1);
        walk.copy_next(stages.stage(stage));
        dev::cp_async_commit();
        if (i > 0) {
            dev::cp_async_wait<1>();
            publish(stages, i - 1);
        }
    }
    if (steps > 0) {
        dev::cp_async_wait<0>();
        publish(stages, steps - 1);
    }
}

// A matrix of kRows rows in shared memory as wgmma's operand, summed over its columns (K-major) or rows (MN-major).
// Made once per step: the parts lie at fixed distances, and only the low word of a descriptor changes.
DEVICE uint64_t columns_summed(uint32_t address) {
    return dev::wgmma_descriptor(address, 16, 1024, dev::Swizzle::b128);
}
template <class C, int kRows>
DEVICE constexpr uint32_t column_offset(int column) {
    return column / 64 * C::template kPanelBytes<kRows> + column % 64 * 2;
}
template <class C, int kRows>
DEVICE uint64_t rows_summed(uint32_t address) {
    return dev::wgmma_descriptor(address, C::template kPanelBytes<kRows>, 1024, dev::Swizzle::b128);
}

// scores = own walked^T, 64 x kWalked; to be waited for.
template <class C>
DEVICE void issue_product(float (&scores)[C::kWalked / 2], uint32_t own, uint32_t walked) {
    const uint64_t left = columns_summed(own), right = columns_summed(walked);
#pragma unroll
    for (int k = 0; k < C::kHeadDim; k += 16) {
        dev::wgmma_ss<typename C::Element>(scores, dev::wgmma_advanced(left, column_offset<C, C::kOwned>(k)),
                                           dev::wgmma_advanced(right, column_offset<C, C::kWalked>(k)), k > 0);
    }
    dev::wgmma_commit();
}

// The same with the rows owned in registers.
template <class C>
DEVICE void issue_product(float (&scores)[C::kWalked / 2], const uint32_t (&own)[C::kHeadDim / 16][4],
                          uint32_t walked) {
    const uint64_t right = columns_summed(walked);
#pragma unroll
    for (int k = 0; k < C::kHeadDim; k += 16) {
        dev::wgmma_rs<typename C::Element>(scores, own[k / 16],
                                           dev::wgmma_advanced(right, column_offset<C, C::kWalked>(k)), k > 0);
    }
    dev::wgmma_commit();
}

// A warp's 16 rows of a matrix of rows owned, from `row` on, as left operands.
template <class C>
DEVICE void load_operand(uint32_t (&own)[C::kHeadDim / 16][4], uint32_t matrix, int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < C::kHeadDim; k += 16)
        dev::ldmatrix_x4(own[k / 16], matrix + C::template at<C::kOwned>(row + lane % 16, k + lane / 16 * 8));
}

// gradient += weights walked; to be waited for.
template <class C>
DEVICE void issue_accumulation(float (&gradient)[C::kHeadDim / 2], const uint32_t (&weights)[C::kWalked / 16][4],
                               uint32_t walked) {
    const uint64_t right = rows_summed<C, C::kWalked>(walked);
    dev::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::kWalked / 16; ++k) {
        dev::wgmma_rs<typename C::Element, dev::Major::MN>(gradient, weights[k],
                                                           dev::wgmma_advanced(right, k * 16 * 128), true);
    }
    dev::wgmma_commit();
}

// Until `x` may be read; kPending younger groups of products go on.
template <int kPending, int kRegisters>
DEVICE void wait(float (&x)[kRegisters]) {
    dev::wgmma_wait<kPending>();
    dev::wgmma_hold(x);
}

// A consumer warpgroup: 64 rows of the gradients.
template <class C>
DEVICE void make_gradients(const GradientParams& p, const Stages<C>& stages, const backward::Place<C>& place) {
    constexpr bool kKeys = C::kOwner == Owner::keys;
    const int lane = threadIdx.x % 32;
    // Of the warpgroup, in the tile. By a shuffle, so that descriptors are computed once per warp and not per thread.
    const int first_row = static_cast<int>(dev::shfl_idx(threadIdx.x / 128 - 1, 0)) * 64;
    const int warp_row = first_row + threadIdx.x % 128 / 32 * 16;  // of the warp
    const uint32_t own_first = stages.base + C::kOwnBytes + first_row * 128,
                   own_second = own_first + C::template kBytes<C::kOwned>;
    const backward::Walk<C> walk(p, place);
    const int steps = walk.steps();
    const float scale = p.scale * dev::kLog2E;

    const bool has_rows = place.tile.row + first_row < place.tile.row_end;  // or this warpgroup only keeps step
    float2 row_stats[1][2];  // of queries owned: LSE and delta of the rows that a lane has elements of
    if (!kKeys) {
#pragma unroll
        for (int half = 0; half < 2; ++half) row_stats[0][half] = place.stats(p, warp_row + half * 8 + lane / 4);
    }

    uint32_t held_first[C::kHeadDim / 16][4], held_second[C::kHeadDim / 16][4];
    if (C::kOwnInRegisters && steps > 0) {
        dev::mbar_wait(stages.full(0), 0);  // they arrive with step 0
        load_operand<C>(held_first, stages.base + C::kOwnBytes, warp_row);
        load_operand<C>(held_second, stages.base + C::kOwnBytes + C::template kBytes<C::kOwned>, warp_row);
    }
    float d_first[C::kHeadDim / 2] = {}, d_second[C::kHeadDim / 2] = {};
    for (int i = 0; i < steps; ++i) {
        const int stage = i % C::kStages;
        const uint32_t first = stages.stage(stage), second = first + C::template kBytes<C::kWalked>;
        const uint8_t* stats = dev::dynamic_shared() + (second - stages.base) + C::template kBytes<C::kWalked>;
        float weights[C::kWalked / 2], d_weights[C::kWalked / 2];
        const auto weight = [&](int, int n, int j) -> float& { return weights[n * 4 + j]; };
        const auto d_weight = [&](int, int n, int j) -> float& { return d_weights[n * 4 + j]; };
        dev::mbar_wait(stages.full(stage), i / C::kStages % 2);
        if (!has_rows) {
            stages.release(stage);
            continue;
        }
        dev::wgmma_fence();
        if constexpr (C::kOwnInRegisters) {
            issue_product<C>(weights, held_first, first);
            issue_product<C>(d_weights, held_second, second);
        } else {
            issue_product<C>(weights, own_first, first);
            issue_product<C>(d_weights, own_second, second);
        }
        wait<1>(weights);
        backward::make_weights<C>(weight, scale, row_stats, stats, walk.length - i * C::kWalked);

        uint32_t packed[C::kWalked / 16][4], d_packed[C::kWalked / 16][4];
        if constexpr (kKeys) {
            dev::pack_operand<typename C::Element>(packed, weights);
            issue_accumulation<C>(d_second, packed, second);
        }
        wait<kKeys ? 1 : 0>(d_weights);
        backward::make_score_gradients<C>(d_weight, weight, row_stats, stats);
        dev::pack_operand<typename C::Element>(d_packed, d_weights);
        issue_accumulation<C>(d_first, d_packed, first);
        wait<0>(d_first);
        if constexpr (kKeys) dev::wgmma_hold(d_second);

        stages.release(stage);
    }
    backward::store_gradients(
        p, place, warp_row, [&](int n, int j) { return d_first[n * 4 + j]; },
        [&](int n, int j) { return d_second[n * 4 + j]; });
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) gradients(const __grid_constant__ GradientParams p) {
    const Stages<C> stages{dev::shared_address(dev::dynamic_shared())};
    stages.init();
    const backward::Place<C> place(p);
    if (threadIdx.x < C::kCopyThreads) {
        dev::setmaxnreg_dec<C::kCopyRegisters>();
        copy_all(p, stages, place);
    } else {
        dev::setmaxnreg_inc<C::kConsumerRegisters>();
        make_gradients(p, stages, place);
    }
}

}  // namespace hopper
