// Arguments of the kernels that put the pieces of split tiles together, in the order of the list.
#pragma once

// out = sum_i 2^(lse_i - lse) out_i with lse = log2 sum_i 2^lse_i.
struct MergeOutputsParams {
    const float* part_out;  // (slots, H, block, D) contiguous
    const float* part_lse;  // (slots, H, block) contiguous, base 2
    void* out;              // (N, H, D) contiguous, 16-bit
    float* lse;             // (N, H) contiguous, natural logarithm
    const int* merges;      // (num_merges, 8): row, row end, first slot, slots, in_tiv
    int num_merges;
    int heads;     // H
    int block;     // rows per slot
    int head_dim;  // D, a multiple of 8
};

// grad = sum_i part_i.
struct SumGradientsParams {
    const float* part;  // (slots, heads, block, D) contiguous
    void* grad;         // (rows, heads, D) contiguous, 16-bit
    void* grad_tiv;     // the same for merges marked in_tiv; grad again unless scope is "broadcast"
    const int* merges;  // (num_merges, 8): row, row end, first slot, slots, in_tiv
    int num_merges;
    int heads;     // of the gradient: H for dq, Hk for dk and dv
    int block;     // rows per slot
    int head_dim;  // D, a multiple of 8
};
