// A (rows, heads, head_dim) tensor of 16-bit floats, contiguous along head_dim, every row 16-byte aligned.
#pragma once
#include <cstdint>

struct Tensor {
    const void* data;
    int64_t row, head;  // strides in elements
};

enum class ElementType { bf16, fp16 };
