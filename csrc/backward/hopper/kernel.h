// The gradients by wgmma: sm_90a (docs/kernels/cuda-backward.md). One kernel makes dq, dk and dv, see
// backward/sides.h: a persistent block works through its share of the items of both owners.
//
// One warpgroup copies the rows walked, through a ring of stages, and the rows owned, through another; copies row by
// row rather than by TMA, so that [A | B] needs no tail steps of its own and no tensor maps: eight copies of a thread
// feed what keeps the tensor cores busy for 1024 clocks. It runs ahead over the ends of items. The others own 64 rows
// each. Their products overlap with the exponentials of one another, and in a warpgroup with its own:
//
//     issue S, dP    wait S    P    issue d_second += P Y    wait dP    dS    issue d_first += dS Y    wait
#pragma once
#include "backward/hopper/config.h"
#include "backward/sides.h"
#include "common/ring.h"

namespace hopper {

// Each warp signs for itself, after the reads of all its lanes.
DEVICE void sign_off(uint32_t empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) dev::mbar_arrive(empty);
}

template <class P>
DEVICE void init_barriers(const GradientShared<P>& shared) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < P::kPlaces + P::kStages; ++i) {
            dev::mbar_init(shared.own_full(i), P::kCopyThreads);
            dev::mbar_init(shared.own_empty(i), 4 * P::kConsumers);  // warps
        }
        dev::fence_mbar_init();
    }
    __syncthreads();
}

// A thread's copies, in groups; each has a barrier that is told when it has landed. So it is once the copies of the
// next one have begun.
struct Landing {
    uint32_t full = 0;  // of the group before; no barrier lies at 0

    DEVICE void begun(uint32_t next_full) {
        dev::cp_async_commit();
        if (full != 0) {
            dev::cp_async_wait<1>();
            publish();
        }
        full = next_full;
    }
    DEVICE void finish() const {
        dev::cp_async_wait<0>();
        if (full != 0) publish();
    }

  private:
    DEVICE void publish() const {
        dev::fence_proxy_async();  // wgmma reads through another proxy
        dev::mbar_arrive(full);
    }
};

// The copying warpgroup.
template <class P>
struct Copier {
    const GradientParams& p;
    const GradientShared<P> shared;
    Ring places{P::kPlaces}, stages{P::kStages};
    Landing landing;

    template <class C, bool kIsSecond>
    DEVICE void copy_owned(const backward::Place<C>& place, bool wanted) {
        if (wanted) place.template copy<kIsSecond>(p, shared.own(places.slot));
        landing.begun(shared.own_full(places.slot));
        places.advance();
    }

    template <class C>
    DEVICE void copy_step(backward::Walk<C>& walk) {
        dev::mbar_wait(shared.empty(stages.slot), stages.phase ^ 1);
        walk.copy_next(shared.stage(stages.slot), shared.base + shared.stats_offset(stages.slot));
        landing.begun(shared.full(stages.slot));
        stages.advance();
    }

    // Item i of the order, which is item `of_owner` of its side.
    template <class C>
    DEVICE void copy_item(int i, int of_owner) {
        const backward::Place<C> place(p, of_owner);
        backward::Walk<C> walk(p, place);
        const int steps = walk.steps();
        dev::mbar_wait(shared.own_empty(places.slot), places.phase ^ 1);
        if (threadIdx.x == 0) shared.item(i) = {place.tile, place.head, C::kOwner};
        copy_owned<C, false>(place, steps > 0);
        if (steps > 0) copy_step(walk);
        // The first step is on its way already: this place may be one that the item before still reads.
        dev::mbar_wait(shared.own_empty(places.slot), places.phase ^ 1);
        copy_owned<C, true>(place, steps > 0);
        for (int step = 1; step < steps; ++step) copy_step(walk);
    }

    DEVICE void copy_all() {
        for (int i = p.shares.bounds[blockIdx.x]; i < p.shares.bounds[blockIdx.x + 1]; ++i) {
            const int item = p.shares.order[i], of_keys = item - p.num_query_tiles * p.heads;
            if (of_keys < 0) {
                copy_item<typename P::Queries>(i, item);
            } else {
                copy_item<typename P::Keys>(i, of_keys);
            }
        }
        landing.finish();
    }
};

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
template <class P>
struct Consumer {
    const GradientParams& p;
    const GradientShared<P> shared;
    const int first_row;  // in a tile
    Ring places{P::kPlaces}, stages{P::kStages};

    // Of an item without steps, or of one without rows for this warpgroup: everything is signed off.
    DEVICE void pass_over(int steps, uint32_t first_empty, uint32_t second_empty) {
        sign_off(first_empty);
        for (int i = 0; i < steps; ++i) {
            dev::mbar_wait(shared.full(stages.slot), stages.phase);
            sign_off(shared.empty(stages.slot));
            stages.advance();
        }
        sign_off(second_empty);
    }

    template <class C>
    DEVICE void accumulate(const backward::Place<C>& place, float (&d_first)[C::kHeadDim / 2],
                           float (&d_second)[C::kHeadDim / 2], int first_place, int second_place) {
        constexpr bool kKeys = C::kOwner == Owner::keys;
        const int lane = threadIdx.x % 32;
        const int warp_row = first_row + threadIdx.x % 128 / 32 * 16;  // of the warp
        const uint32_t own_first = shared.own(first_place) + first_row * 128,
                       own_second = shared.own(second_place) + first_row * 128;
        const backward::Walk<C> walk(p, place);
        const int steps = walk.steps();
        const float scale = p.scale * dev::kLog2E;

        float2 row_stats[1][2];  // of queries owned: LSE and delta of the rows that a lane has elements of
        if (!kKeys) {
#pragma unroll
            for (int half = 0; half < 2; ++half) row_stats[0][half] = place.stats(p, warp_row + half * 8 + lane / 4);
        }
        uint32_t held_first[C::kHeadDim / 16][4], held_second[C::kHeadDim / 16][4];
        if (C::kOwnInRegisters) {
            load_operand<C>(held_first, shared.own(first_place), warp_row);
            load_operand<C>(held_second, shared.own(second_place), warp_row);
            sign_off(shared.own_empty(first_place));
            sign_off(shared.own_empty(second_place));
        }

        for (int i = 0; i < steps; ++i) {
            const uint32_t first = shared.stage(stages.slot), second = first + C::template kBytes<C::kWalked>;
            const uint8_t* stats = dev::dynamic_shared() + shared.stats_offset(stages.slot);
            const bool is_last = i == steps - 1;
            float weights[C::kWalked / 2], d_weights[C::kWalked / 2];
            const auto weight = [&](int, int n, int j) -> float& { return weights[n * 4 + j]; };
            const auto d_weight = [&](int, int n, int j) -> float& { return d_weights[n * 4 + j]; };
            dev::mbar_wait(shared.full(stages.slot), stages.phase);
            dev::wgmma_fence();
            if constexpr (C::kOwnInRegisters) {
                issue_product<C>(weights, held_first, first);
                issue_product<C>(d_weights, held_second, second);
            } else {
                issue_product<C>(weights, own_first, first);
                issue_product<C>(d_weights, own_second, second);
            }
            wait<1>(weights);
            if (!C::kOwnInRegisters && is_last) sign_off(shared.own_empty(first_place));
            backward::make_weights<C>(weight, scale, row_stats, stats, walk.length - i * C::kWalked);

            uint32_t packed[C::kWalked / 16][4], d_packed[C::kWalked / 16][4];
            if constexpr (kKeys) {
                dev::pack_operand<typename C::Element>(packed, weights);
                issue_accumulation<C>(d_second, packed, second);
            }
            wait<kKeys ? 1 : 0>(d_weights);
            if (!C::kOwnInRegisters && is_last) sign_off(shared.own_empty(second_place));
            backward::make_score_gradients<C>(d_weight, weight, row_stats, stats);
            dev::pack_operand<typename C::Element>(d_packed, d_weights);
            issue_accumulation<C>(d_first, d_packed, first);
            wait<0>(d_first);
            if constexpr (kKeys) dev::wgmma_hold(d_second);

            sign_off(shared.empty(stages.slot));
            stages.advance();
        }
    }

    template <class C>
    DEVICE void make_item(const GradientItem& item) {
        const int first_place = places.slot;
        places.advance();
        const int second_place = places.slot;
        dev::mbar_wait(shared.own_full(second_place), places.phase);
        places.advance();
        float d_first[C::kHeadDim / 2] = {}, d_second[C::kHeadDim / 2] = {};
        {
            const backward::Place<C> place(p, item.head, item.tile);
            const int steps = backward::Walk<C>(p, place).steps();
            if (steps == 0 || place.tile.row + first_row >= place.tile.row_end) {
                pass_over(steps, shared.own_empty(first_place), shared.own_empty(second_place));
            } else {
                accumulate(place, d_first, d_second, first_place, second_place);
            }
        }
        // Read again, for the sake of registers.
        const backward::Place<C> place(p, item.head, item.tile);
        backward::store_gradients(
            p, place, first_row + threadIdx.x % 128 / 32 * 16, [&](int n, int j) { return d_first[n * 4 + j]; },
            [&](int n, int j) { return d_second[n * 4 + j]; });
    }

    DEVICE void make_all() {
        for (int i = p.shares.bounds[blockIdx.x]; i < p.shares.bounds[blockIdx.x + 1]; ++i) {
            dev::mbar_wait(shared.own_full(places.slot), places.phase);
            const GradientItem& item = shared.item(i);
            if (item.owner == Owner::queries) {
                make_item<typename P::Queries>(item);
            } else {
                make_item<typename P::Keys>(item);
            }
        }
    }
};

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1) gradients(const __grid_constant__ GradientParams p) {
    const GradientShared<P> shared{dev::shared_address(dev::dynamic_shared())};
    init_barriers(shared);
    if (threadIdx.x < P::kCopyThreads) {
        dev::setmaxnreg_dec<P::kCopyRegisters>();
        Copier<P>{p, shared}.copy_all();
    } else {
        dev::setmaxnreg_inc<P::kConsumerRegisters>();
        // By a shuffle, so that descriptors are computed once per warp and not per thread.
        const int first_row = static_cast<int>(dev::shfl_idx(threadIdx.x / 128 - 1, 0)) * 64;
        Consumer<P>{p, shared, first_row}.make_all();
    }
}

}  // namespace hopper
