#include "common/visit.h"
#include "merge/kernel.h"
#include "merge/launch.h"

namespace merge {

void launch_outputs(const MergeOutputsParams& params, ElementType type, cudaStream_t stream) {
    with_element(type, [&]<class Element>(Element) {
        outputs<Element><<<params.num_merges * params.block, kThreads, 0, stream>>>(params);
    });
    check(cudaGetLastError(), "launch of the merge of outputs");
}

void launch_gradients(const SumGradientsParams& params, ElementType type, cudaStream_t stream) {
    with_element(type, [&]<class Element>(Element) {
        gradients<Element><<<params.num_merges * params.block, kThreads, 0, stream>>>(params);
    });
    check(cudaGetLastError(), "launch of the sum of gradients");
}

}  // namespace merge
