// What the Hopper forward needs beside ForwardParams; plain C++, for hosts.
#pragma once
#include <cstdint>

namespace hopper {

// How the items (tile * heads + head) are shared out: block i works on order[bounds[i]] ... order[bounds[i + 1] - 1].
struct Shares {
    const int* order;   // (num_tiles * heads), on the device
    const int* bounds;  // (blocks + 1), on the device
    int blocks;         // at most one per SM
};

// Rows of q, of k and v, of k_tiv and v_tiv (0 where no TIV row exists).
struct RowCounts {
    int64_t q, k, tiv;
};

}  // namespace hopper
