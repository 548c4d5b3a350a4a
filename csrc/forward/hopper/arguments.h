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
    const int key_heads = p.heads / p.group;
    KernelParams args{.forward = p, .shares = shares};
    args.q = map("q", p.q, rows.q, p.heads, kGroupRows);
    args.k = map("k", p.k, rows.k, key_heads, C::kBlockK);
    args.v = map("v", p.v, rows.k, key_heads, C::kBlockK);
    // Without TIV rows no item has a range A, and a map of nothing could not be encoded.
    args.k_tiv = rows.tiv ? map("k_tiv", p.k_tiv, rows.tiv, key_heads, C::kBlockK) : args.k;
    args.v_tiv = rows.tiv ? map("v_tiv", p.v_tiv, rows.tiv, key_heads, C::kBlockK) : args.v;
    return args;
}

}  // namespace hopper
