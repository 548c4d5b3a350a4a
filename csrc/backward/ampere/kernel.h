// The gradients by mma.sync and cp.async: sm_80 and everything after it (docs/kernels/cuda-backward.md). One kernel for
// dq and for dk and dv, see backward/sides.h.
#pragma once
#include "backward/ampere/config.h"
#include "backward/sides.h"

namespace ampere {

// Fragments of m16n8k16, one warp's rows: of each 16 x 8 block a thread holds columns 2 (lane % 4) + {0, 1} of rows
// lane / 4 (elements 0, 1) and lane / 4 + 8 (elements 2, 3).
template <class C, int kColumns>
using Fragments = float[C::kRowTiles][kColumns / 8][4];

// scores = own walked^T over the columns of both. Addresses are those of the lane's row of ldmatrix.
template <class C>
DEVICE void multiply(Fragments<C, C::kWalked>& scores, uint32_t own, uint32_t walked) {
    using E = typename C::Element;
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < C::kWalked / 8; ++n) {
#pragma unroll
            for (int j = 0; j < 4; ++j) scores[m][n][j] = 0;
        }
    }
#pragma unroll
    for (int k = 0; k < C::kHeadDim / 16; ++k) {
        uint32_t a[C::kRowTiles][4];
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) dev::ldmatrix_x4(a[m], own + m * 16 * C::kPitch + k * 32);
#pragma unroll
        for (int n = 0; n < C::kWalked / 8; n += 2) {
            uint32_t b[4];
            dev::ldmatrix_x4(b, walked + n * 8 * C::kPitch + k * 32);
#pragma unroll
            for (int m = 0; m < C::kRowTiles; ++m) {
                dev::mma_m16n8k16<E>(scores[m][n], a[m], b[0], b[1]);
                dev::mma_m16n8k16<E>(scores[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// gradient += weights walked. The result of one product has the layout of the left operand of the next.
template <class C>
DEVICE void accumulate(Fragments<C, C::kHeadDim>& gradient, const Fragments<C, C::kWalked>& weights, uint32_t walked) {
    using E = typename C::Element;
#pragma unroll
    for (int k = 0; k < C::kWalked / 16; ++k) {
        uint32_t a[C::kRowTiles][4];
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) dev::pack_operand<E>(a[m], weights[m][2 * k], weights[m][2 * k + 1]);
#pragma unroll
        for (int n = 0; n < C::kHeadDim / 8; n += 2) {
            uint32_t b[4];
            dev::ldmatrix_x4_trans(b, walked + k * 16 * C::kPitch + n * 16);
#pragma unroll
            for (int m = 0; m < C::kRowTiles; ++m) {
                dev::mma_m16n8k16<E>(gradient[m][n], a[m], b[0], b[1]);
                dev::mma_m16n8k16<E>(gradient[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksPerSm) gradients(const __grid_constant__ GradientParams p) {
    constexpr bool kKeys = C::kOwner == Owner::keys;
    const backward::Place<C> place(p, blockIdx.x);
    backward::Walk<C> walk(p, place);
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * C::kWarpRows;
    uint8_t* own_bytes = dev::dynamic_shared();
    const uint32_t own = dev::shared_address(own_bytes), stages = own + 2 * C::template kBytes<C::kOwned>;

    const int steps = walk.steps();
    if (steps > 0) {
        place.template copy<false>(p, own);
        place.template copy<true>(p, own + C::template kBytes<C::kOwned>);
        walk.copy_next(stages, stages + 2 * C::template kBytes<C::kWalked>);
        dev::cp_async_commit();
    }
    // Of queries owned: LSE and delta of the rows that a lane has elements of.
    float2 row_stats[C::kRowTiles][2];
    if (!kKeys) {
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
                row_stats[m][half] = place.stats(p, warp_row + m * 16 + half * 8 + lane / 4);
        }
    }

    const bool has_rows = place.tile.row + warp_row < place.tile.row_end;  // or this warp only copies
    Fragments<C, C::kHeadDim> d_first = {}, d_second = {};
    const float scale = p.scale * dev::kLog2E;
    // Offset of the row that a lane names to ldmatrix: in a left operand or one transposed on the way, and in a right
    // one.
    const uint32_t left = lane % 16 * C::kPitch + lane / 16 * 16;
    const uint32_t right = (lane / 16 * 8 + lane % 8) * C::kPitch + lane / 8 % 2 * 16;
    const uint32_t own_first = own + warp_row * C::kPitch + left,
                   own_second = own_first + C::template kBytes<C::kOwned>;

    for (int i = 0; i < steps; ++i) {
        const uint32_t first = stages + i % C::kStages * C::kStageBytes,
                       second = first + C::template kBytes<C::kWalked>;
        dev::cp_async_wait<0>();
        __syncthreads();  // step i is there, and nobody reads the stage of step i - 1 any more
        if (i + 1 < steps) {
            const uint32_t next = stages + (i + 1) % C::kStages * C::kStageBytes;
            walk.copy_next(next, next + 2 * C::template kBytes<C::kWalked>);
        }
        dev::cp_async_commit();
        if (!has_rows) continue;

        const uint8_t* stats = own_bytes + (second - own) + C::template kBytes<C::kWalked>;
        Fragments<C, C::kWalked> weights, d_weights;
        const auto weight = [&](int m, int n, int j) -> float& { return weights[m][n][j]; };
        const auto d_weight = [&](int m, int n, int j) -> float& { return d_weights[m][n][j]; };
        multiply<C>(weights, own_first, first + right);
        backward::make_weights<C>(weight, scale, row_stats, stats, walk.length - i * C::kWalked);
        if (kKeys) accumulate<C>(d_second, weights, second + left);

        multiply<C>(d_weights, own_second, second + right);
        backward::make_score_gradients<C>(d_weight, weight, row_stats, stats);
        accumulate<C>(d_first, d_weights, first + left);
    }

    // Read again: through the loop it would cost registers, of which there are none left.
    const backward::Place<C> end(p, blockIdx.x);
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
        backward::store_gradients(
            p, end, warp_row + m * 16, [&](int n, int j) { return d_first[m][n][j]; },
            [&](int n, int j) { return d_second[m][n][j]; });
    }
}

}  // namespace ampere
