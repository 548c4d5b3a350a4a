// The Ampere forward in small tiles and the merge kernels on the emulator, for test_ampere_forward.py.
#include "emulator/launch.h"
#include "forward/ampere/kernel.h"
#include "merge/kernel.h"

namespace {

// 32 x 32, so that small cases have several tiles and steps, full ones and tails, and go round the ring.
template <class Element>
using Small = ampere::ForwardConfig<Element, 32, 1, 32, 3, 1, 2>;

template <class Element>
void run(const ForwardParams& params) {
    using C = Small<Element>;
    emu::launch(params.num_tiles * params.heads, C::kThreads, C::kSharedBytes, ampere::forward<C>, params);
}

}  // namespace

extern "C" void forward(const ForwardParams* params, int64_t is_bf16) {
    is_bf16 ? run<dev::bf16>(*params) : run<dev::fp16>(*params);
}

extern "C" void merge_outputs(const MergeOutputsParams* params, int64_t is_bf16) {
    emu::launch(params->num_merges * params->block, merge::kThreads, 0,
                is_bf16 ? merge::outputs<dev::bf16> : merge::outputs<dev::fp16>, *params);
}

extern "C" void sum_gradients(const SumGradientsParams* params, int64_t is_bf16) {
    emu::launch(params->num_merges * params->block, merge::kThreads, 0,
                is_bf16 ? merge::gradients<dev::bf16> : merge::gradients<dev::fp16>, *params);
}
