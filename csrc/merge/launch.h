#pragma once
#include "common/host.h"
#include "merge/params.h"

namespace merge {

void launch_outputs(const MergeOutputsParams& params, ElementType type, cudaStream_t stream);
void launch_gradients(const SumGradientsParams& params, ElementType type, cudaStream_t stream);

}  // namespace merge
