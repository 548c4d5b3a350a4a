// What the products of CuTe and of CUTLASS share: OUT (M, N) = A (M, K) B (K, N), all of one type, OUT by rows.
#pragma once

struct Problem {
    void *a, *b, *out;
    int m, n, k;
    int a_without_swizzle;  // a fault: in the tensor map of A only
};

// What the emulator launches. params: of the kernel, kept for good.
struct Launch {
    void* params;
    int grid[3], threads, shared_bytes;
};
