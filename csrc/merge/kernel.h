// Putting the pieces of split tiles together: kernels of their own rather than a task of the last block to arrive. No
// atomics, no counters to reset between calls, the same order of additions every time.
#pragma once
#include "common/device.h"
#include "common/tile.h"
#include "merge/params.h"

namespace merge {

constexpr int kThreads = 128;

DEVICE void add_scaled(float4& sum, const float* x, float factor) {
    const float4 y = *reinterpret_cast<const float4*>(x);
    sum.x += y.x * factor;
    sum.y += y.y * factor;
    sum.z += y.z * factor;
    sum.w += y.w * factor;
}

template <class Element>
DEVICE void store(void* x, int64_t offset, const float4& value, float factor) {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(x) + offset) = {
        dev::pack<Element>(value.x * factor, value.y * factor), dev::pack<Element>(value.z * factor, value.w * factor)};
}

// Block (merge, row): a row of all heads, four columns per thread at a time.
template <class Element>
__global__ void __launch_bounds__(kThreads) outputs(const __grid_constant__ MergeOutputsParams p) {
    const Merge entry = load_merge(p.merges, blockIdx.x / p.block);
    const int row = blockIdx.x % p.block, quads = p.head_dim / 4;
    if (row >= entry.row_end - entry.row) return;
    for (int i = threadIdx.x; i < p.heads * quads; i += kThreads) {
        const int i_h = i / quads, column = i % quads * 4;
        const auto part_row = [&](int piece) {
            return (static_cast<int64_t>(entry.slot + piece) * p.heads + i_h) * p.block + row;
        };
        float max = dev::neg_inf();
        for (int piece = 0; piece < entry.slots; ++piece) max = fmaxf(max, p.part_lse[part_row(piece)]);
        const float shift = max == dev::neg_inf() ? 0 : max;  // no key seen: weights 0 and not NaN
        float total = 0;
        float4 sum = {0, 0, 0, 0};
        for (int piece = 0; piece < entry.slots; ++piece) {
            const float weight = dev::ex2(p.part_lse[part_row(piece)] - shift);
            total += weight;
            add_scaled(sum, p.part_out + part_row(piece) * p.head_dim + column, weight);
        }
        const int64_t out_row = static_cast<int64_t>(entry.row + row) * p.heads + i_h;
        store<Element>(p.out, out_row * p.head_dim + column, sum, total == 0 ? 0 : 1 / total);
        if (column == 0) p.lse[out_row] = (shift + dev::lg2(total)) * dev::kLn2;
    }
}

template <class Element>
__global__ void __launch_bounds__(kThreads) gradients(const __grid_constant__ SumGradientsParams p) {
    const Merge entry = load_merge(p.merges, blockIdx.x / p.block);
    const int row = blockIdx.x % p.block, quads = p.head_dim / 4;
    if (row >= entry.row_end - entry.row) return;
    for (int i = threadIdx.x; i < p.heads * quads; i += kThreads) {
        const int i_h = i / quads, column = i % quads * 4;
        float4 sum = {0, 0, 0, 0};
        for (int piece = 0; piece < entry.slots; ++piece) {
            const int64_t part_row = (static_cast<int64_t>(entry.slot + piece) * p.heads + i_h) * p.block + row;
            add_scaled(sum, p.part + part_row * p.head_dim + column, 1);
        }
        const int64_t grad_row = static_cast<int64_t>(entry.row + row) * p.heads + i_h;
        store<Element>(entry.in_tiv ? p.grad_tiv : p.grad, grad_row * p.head_dim + column, sum, 1);
    }
}

}  // namespace merge
