// What the drivers of the Hopper forward share.
#pragma once
#include "emulator/launch.h"
#include "forward/hopper/arguments.h"
#include "forward/hopper/kernel.h"
#include "merge/kernel.h"

template <class C>
void run(const ForwardParams& params, const hopper::RowCounts& rows, const hopper::Shares& shares) {
    emu::launch(shares.blocks, C::kThreads, hopper::Shared<C>::kBytes, hopper::forward<C>,
                hopper::arguments<C>(cuTensorMapEncodeTiled, params, rows, shares));
}

extern "C" void merge_outputs(const MergeOutputsParams* params, int64_t is_bf16) {
    emu::launch(params->num_merges * params->block, merge::kThreads, 0,
                is_bf16 ? merge::outputs<dev::bf16> : merge::outputs<dev::fp16>, *params);
}
