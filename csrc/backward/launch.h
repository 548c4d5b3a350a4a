// Launching the backward; the gradient kernels come in one version per architecture.
#pragma once
#include "backward/params.h"
#include "common/host.h"

// LSE and delta, which the gradient kernels read. head_dim: a multiple of 8 up to 128.
void launch_row_statistics(const RowStatisticsParams& params, ElementType type, cudaStream_t stream);

// What schedules need to know of a gradient kernel.
struct GradientTile {
    int owned, walked;  // rows per block and per step
    int blocks_per_sm;
};

// The gradient kernels of one architecture.
struct GradientLauncher {
    bool is_persistent;  // items are shared out among its blocks: GradientParams::shares
    GradientTile (*tile)(Owner owner, int head_dim);
    // Once per device before the first launch: lets the kernels have their shared memory on the current device.
    void (*prepare)(int head_dim, ElementType type);
    // All gradients.
    void (*launch)(const GradientParams& params, ElementType type, cudaStream_t stream);
};

namespace ampere {
extern const GradientLauncher gradient_launcher;  // sm_80 and newer; head_dim: a multiple of 8 up to 128
}
namespace hopper {
extern const GradientLauncher gradient_launcher;  // sm_90a; head_dim: 64 or 128
}
