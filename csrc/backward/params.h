// Arguments of the backward kernels. With S = scale q k^T, P = exp(S - lse), dP = dout v^T and
// delta = rowsum(dout * out) - dlse:
//
//     dv = P^T dout        dS = P * (dP - delta)        dk = scale dS^T q        dq = scale dS k
//
// Shapes as in forward/params.h.
#pragma once
#include "common/shares.h"
#include "common/tensor.h"

struct RowStatisticsParams {
    const void* out;    // (N, H, D) contiguous
    Tensor dout;        // (N, H, D)
    const float* lse;   // (N, H) contiguous, natural logarithm
    const float* dlse;  // (N, H) contiguous, nullptr for none
    float* stats;       // (H, N, 2) contiguous, 16-byte aligned: LSE in base 2, delta
    int rows;           // N
    int heads;          // H
    int head_dim;
};

// Which rows a block of a gradient kernel owns; it walks the rows of the other side. Owners of queries write dq, owners
// of keys dk and dv.
enum class Owner { queries, keys };

struct GradientParams {
    Tensor q, dout;                      // (N, H, D)
    Tensor k, v;                         // (M, Hk, D): range B of query tiles; key tiles
    Tensor k_tiv, v_tiv;                 // (M', Hk, D): range A of query tiles; key tiles marked in_tiv
    const float* stats;                  // (H, N, 2), as the row statistics leave it
    void* dq;                            // (N, H, D) contiguous
    void *dk, *dv;                       // (M, Hk, D) contiguous
    void *dk_tiv, *dv_tiv;               // (M', Hk, D) contiguous; dk and dv again unless scope is "broadcast"
    float* part_dq;                      // (slots, H, block, D) contiguous: pieces of split query tiles
    float *part_dk, *part_dv;            // (slots, Hk, block, D) contiguous: pieces of split key tiles
    const int *query_tiles, *key_tiles;  // (tiles, 8) of query_work and key_work, longest first
    int num_query_tiles, num_key_tiles;
    Shares shares;  // of a persistent kernel: the items of queries, then those of keys
    int rows;       // N
    int heads;      // H
    int group;      // query heads per key head
    int head_dim;   // D
    float scale;    // of scores, any sign
};

namespace backward {

// Items of an owner: one per tile and head of its side.
inline int items(Owner owner, const GradientParams& p) {
    return owner == Owner::keys ? p.num_key_tiles * (p.heads / p.group) : p.num_query_tiles * p.heads;
}

}  // namespace backward
