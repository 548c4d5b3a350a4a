#include "merge/kernel.h"
#include "merge/launch.h"

namespace merge {

void launch_outputs(const MergeOutputsParams& params, ElementType type, cudaStream_t stream) {
    const auto kernel = type == ElementType::bf16 ? outputs<dev::bf16> : outputs<dev::fp16>;
    kernel<<<params.num_merges * params.block, kThreads, 0, stream>>>(params);
    check(cudaGetLastError(), "launch of the merge of outputs");
}

void launch_gradients(const SumGradientsParams& params, ElementType type, cudaStream_t stream) {
    const auto kernel = type == ElementType::bf16 ? gradients<dev::bf16> : gradients<dev::fp16>;
    kernel<<<params.num_merges * params.block, kThreads, 0, stream>>>(params);
    check(cudaGetLastError(), "launch of the sum of gradients");
}

}  // namespace merge
