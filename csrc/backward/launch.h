// Launching the backward; the gradient kernels come in one version per architecture.
#pragma once
#include "backward/params.h"
#include "common/host.h"

// What schedules need to know of a gradient kernel.
struct GradientTile {
    int owned, walked;  // rows per block and per step
    int blocks_per_sm;
};

// LSE and delta, which the gradient kernels read. head_dim: a multiple of 8 up to 128.
void launch_row_statistics(const RowStatisticsParams& params, ElementType type, cudaStream_t stream);

// prepare_gradients: once per device before the first launch, lets the kernels have their shared memory on the current
// device.
namespace ampere {  // sm_80 and newer; head_dim: a multiple of 8 up to 128
GradientTile gradient_tile(Owner owner, int head_dim);
void prepare_gradients(int head_dim, ElementType type);
void launch_gradients(Owner owner, const GradientParams& params, ElementType type, cudaStream_t stream);
}  // namespace ampere

namespace hopper {  // sm_90a; head_dim: 64 or 128
GradientTile gradient_tile(Owner owner, int head_dim);
void prepare_gradients(int head_dim, ElementType type);
void launch_gradients(Owner owner, const GradientParams& params, ElementType type, cudaStream_t stream);
}  // namespace hopper
