// Arguments of the forward kernels: softmax(scale q k^T) v over the key ranges of each tile, and its LSE.
// Shapes: N query rows, M key rows, M' TIV key rows (scope "broadcast", else M' = M and the TIV tensors are k and v
// again), H query heads, Hk = H / group key heads, D head_dim. float16 or bfloat16 where no type is given.
#pragma once
#include "common/tensor.h"

struct ForwardParams {
    Tensor q;             // (N, H, D)
    Tensor k, v;          // (M, Hk, D): range B of the tiles
    Tensor k_tiv, v_tiv;  // (M', Hk, D): range A
    void* out;            // (N, H, D) contiguous
    float* lse;           // (N, H) contiguous, natural logarithm
    float* part_out;      // (slots, H, BLOCK_Q, D) contiguous: normalised results of the pieces of split tiles
    float* part_lse;      // (slots, H, BLOCK_Q) contiguous, base 2
    const int* tiles;     // (num_tiles, 8) of query_work, longest first
    int num_tiles;
    int heads;     // H
    int group;     // query heads per key head
    int head_dim;  // D, a multiple of 8
    float scale;   // of scores, any sign
};

// What schedules need to know of a forward kernel.
struct ForwardTile {
    int block_q, block_k, blocks_per_sm;
};
