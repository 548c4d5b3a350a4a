// How items are shared out among the blocks of a persistent kernel (tivtok_kernels/cuda/shares.py); plain C++, for
// hosts.
#pragma once

// Block i works on items order[bounds[i]] ... order[bounds[i + 1] - 1].
struct Shares {
    const int* order;   // all items, on the device
    const int* bounds;  // (blocks + 1), on the device
    int blocks;         // at most one per SM
};
