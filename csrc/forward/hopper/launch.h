#pragma once
#include "common/host.h"
#include "common/shares.h"
#include "forward/hopper/row_counts.h"
#include "forward/params.h"

namespace hopper {

// head_dim: 64 or 128.
ForwardTile forward_tile(int head_dim);

// Once per device before the first launch: lets the kernel have its shared memory on the current device.
void prepare_forward(int head_dim, ElementType type);

// Throws std::invalid_argument if a tensor cannot be read by TMA (see row_boxes): every stride must be a positive
// multiple of 8 elements.
void launch_forward(const ForwardParams& params, const RowCounts& rows, const Shares& shares, ElementType type,
                    cudaStream_t stream);

}  // namespace hopper
