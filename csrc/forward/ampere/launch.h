#pragma once
#include "common/host.h"
#include "forward/params.h"

namespace ampere {

// head_dim: a multiple of 8 up to 128.
ForwardTile forward_tile(int head_dim);

// Once per device before the first launch: lets the kernel have its shared memory on the current device.
void prepare_forward(int head_dim, ElementType type);
void launch_forward(const ForwardParams& params, ElementType type, cudaStream_t stream);

}  // namespace ampere
