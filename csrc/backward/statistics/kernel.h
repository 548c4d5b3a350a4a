// What the gradients need of each query row besides q and dout, written once per row: (H, N, 2), so that the kernels
// that walk queries copy both numbers of a row at a time.
#pragma once
#include "backward/params.h"
#include "common/device.h"

namespace statistics {

constexpr int kThreads = 256;

// Grid: (row tiles * heads). kLanes threads of 8 columns each share a row; kLanes is a power of two, 8 * kLanes >=
// head_dim.
template <class Element, int kLanes>
__global__ void __launch_bounds__(kThreads) rows(const __grid_constant__ RowStatisticsParams p) {
    constexpr int kRows = kThreads / kLanes;
    const int i_head = blockIdx.x % p.heads;
    const int row = blockIdx.x / p.heads * kRows + threadIdx.x / kLanes;
    const int column = threadIdx.x % kLanes * 8;
    const int64_t i_row = static_cast<int64_t>(row) * p.heads + i_head;

    float delta = 0.f;
    if (row < p.rows && column < p.head_dim) {
        const uint16_t* p_out = static_cast<const uint16_t*>(p.out) + i_row * p.head_dim + column;
        const uint16_t* p_dout =
            static_cast<const uint16_t*>(p.dout.data) + row * p.dout.row + i_head * p.dout.head + column;
        const uint4 out = *reinterpret_cast<const uint4*>(p_out), dout = *reinterpret_cast<const uint4*>(p_dout);
        const uint32_t pairs[4][2] = {{out.x, dout.x}, {out.y, dout.y}, {out.z, dout.z}, {out.w, dout.w}};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float out_lo, out_hi, dout_lo, dout_hi;
            dev::unpack<Element>(pairs[i][0], out_lo, out_hi);
            dev::unpack<Element>(pairs[i][1], dout_lo, dout_hi);
            delta += out_lo * dout_lo + out_hi * dout_hi;
        }
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) delta += dev::shfl_xor(delta, distance);
    if (row < p.rows && column == 0) {
        if (p.dlse) delta -= p.dlse[i_row];
        float* p_stats = p.stats + (static_cast<int64_t>(i_head) * p.rows + row) * 2;
        *reinterpret_cast<float2*>(p_stats) = make_float2(p.lse[i_row] * dev::kLog2E, delta);
    }
}

}  // namespace statistics
