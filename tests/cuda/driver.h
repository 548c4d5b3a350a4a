// What the drivers of all kernels share: the merges of the pieces of split tiles.
#pragma once
#include "common/tensor.h"
#include "emulator/launch.h"
#include "merge/kernel.h"

inline ElementType element_type(int64_t is_bf16) { return is_bf16 ? ElementType::bf16 : ElementType::fp16; }

extern "C" void merge_outputs(const MergeOutputsParams* params, int64_t is_bf16) {
    emu::launch(params->num_merges * params->block, merge::kThreads, 0,
                is_bf16 ? merge::outputs<dev::bf16> : merge::outputs<dev::fp16>, *params);
}

extern "C" void sum_gradients(const SumGradientsParams* params, int64_t is_bf16) {
    emu::launch(params->num_merges * params->block, merge::kThreads, 0,
                is_bf16 ? merge::gradients<dev::bf16> : merge::gradients<dev::fp16>, *params);
}
