// From tensors to the kernel's arguments.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/tensor_map.h"
#include "forward/hopper/config.h"
#include "forward/hopper/params.h"

namespace hopper {

// Throws std::invalid_argument if a tensor cannot be read by TMA.
template <class C>
KernelParams arguments(EncodeTiled encode, const ForwardParams& p, const RowCounts& rows, const Shares& shares) {
    const auto map = [&](const char* name, const Tensor& x, int64_t count, int heads, int box_rows) {
        constexpr bool kIsBf16 = std::is_same_v<typename C::Element, dev::bf16>;
        return row_boxes(encode, name, x, kIsBf16, count, heads, C::kHeadDim, box_rows);
    };
    const auto maps = [&](const char* name, const Tensor& x, int64_t count) -> KeyMaps {
        const int heads = p.heads / p.group;
        return {map(name, x, count, heads, C::kBlockK), map(name, x, count, heads, C::kBoxRows)};
    };
    KernelParams args{.forward = p, .shares = shares};
    args.q = map("q", p.q, rows.q, p.heads, kGroupRows);
    args.k = maps("k", p.k, rows.k);
    args.v = maps("v", p.v, rows.k);
    // Without TIV rows no item has a range A, and a map of nothing could not be encoded.
    args.k_tiv = rows.tiv ? maps("k_tiv", p.k_tiv, rows.tiv) : args.k;
    args.v_tiv = rows.tiv ? maps("v_tiv", p.v_tiv, rows.tiv) : args.v;
    return args;
}

}  // namespace hopper
