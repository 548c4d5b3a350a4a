// TMA descriptors of (rows, heads, head_dim) tensors. The one place that knows the arguments of cuTensorMapEncodeTiled.
#pragma once
#include <cuda.h>

#include <stdexcept>
#include <string>

#include "common/tensor.h"

// The driver's cuTensorMapEncodeTiled, which no library is linked for.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

constexpr int kMapColumns = 64;  // of a box: 128 bytes, the width of the swizzle

namespace tensor_map {

constexpr int64_t kElementBytes = 2;
constexpr int64_t kAlignment = 16;
constexpr int64_t kMaxStride = int64_t{1} << 40;

inline void require(bool holds, const char* name, const std::string& what) {
    if (!holds) throw std::invalid_argument(std::string("tensor map of ") + name + ": " + what);
}

// A stride in bytes; that of a dimension of size 1 is never used and may have any value.
inline int64_t stride_bytes(const char* name, const char* dimension, int64_t size, int64_t stride, int64_t packed) {
    const int64_t bytes = (size == 1 ? packed : stride) * kElementBytes;
    require(bytes > 0 && bytes % kAlignment == 0 && bytes < kMaxStride, name,
            std::string(dimension) + " stride must be a positive multiple of 8 elements below 2^39, got " +
                std::to_string(stride));
    return bytes;
}

}  // namespace tensor_map

// Boxes of box_rows rows x 1 head x 64 columns of a tensor of bfloat16 or float16, as wgmma reads them (128-byte
// swizzle), that end with any row. A load of `count` <= box_rows rows from `row` on has the coordinates
//
//     (column, head, box_rows - count, row + count)
//
// and the rest of its box arrives as zeros. For that the rows are two dimensions with the same stride: the third is no
// longer than a box, so it ends where the load has to, and the fourth brings it there. Its origin, to which the
// coordinates above add at least a box, lies box_rows rows before the tensor. (triton/tools/ragged_tma.py does the same
// with three dimensions and addresses that wrap around.)
//
// Throws std::invalid_argument, naming x, if the tensor or the box is none that TMA can read, and std::runtime_error if
// the driver refuses.
inline CUtensorMap row_boxes(EncodeTiled encode, const char* name, const Tensor& x, bool is_bf16, int64_t rows,
                             int heads, int head_dim, int box_rows) {
    tensor_map::require(reinterpret_cast<uintptr_t>(x.data) % tensor_map::kAlignment == 0, name,
                        "data must be aligned to 16 bytes");
    tensor_map::require(rows >= 1 && heads >= 1, name,
                        "expected rows and heads >= 1, got " + std::to_string(rows) + " and " + std::to_string(heads));
    tensor_map::require(head_dim >= kMapColumns && head_dim % kMapColumns == 0, name,
                        "head_dim must be a multiple of 64, got " + std::to_string(head_dim));
    tensor_map::require(box_rows >= 1 && box_rows <= 256, name,
                        "a box has 1 to 256 rows, got " + std::to_string(box_rows));

    const int64_t head_stride = tensor_map::stride_bytes(name, "head", heads, x.head, head_dim);
    const int64_t row_stride =
        tensor_map::stride_bytes(name, "row", rows, x.row, heads * head_stride / tensor_map::kElementBytes);
    const cuuint64_t sizes[] = {cuuint64_t(head_dim), cuuint64_t(heads), cuuint64_t(box_rows), cuuint64_t(rows) + 1};
    const cuuint64_t strides[] = {cuuint64_t(head_stride), cuuint64_t(row_stride), cuuint64_t(row_stride)};
    const cuuint32_t box[] = {kMapColumns, 1, cuuint32_t(box_rows), 1};
    const cuuint32_t every[] = {1, 1, 1, 1};
    const uintptr_t origin = reinterpret_cast<uintptr_t>(x.data) - box_rows * row_stride;
    CUtensorMap map;
    const CUresult result =
        encode(&map, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
               reinterpret_cast<void*>(origin), sizes, strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw std::runtime_error(std::string("tensor map of ") + name + ": cuTensorMapEncodeTiled returned " +
                                 std::to_string(result));
    return map;
}
