// What the drivers of the backward kernels share: the row statistics and the sum of the pieces of split tiles.
#pragma once
#include "backward/statistics/kernel.h"
#include "emulator/launch.h"
#include "merge/kernel.h"

template <class Element>
void run_statistics(const RowStatisticsParams& params) {
    const auto run = [&]<int kLanes>() {
        constexpr int kRows = statistics::kThreads / kLanes;
        emu::launch((params.rows + kRows - 1) / kRows * params.heads, statistics::kThreads, 0,
                    statistics::rows<Element, kLanes>, params);
    };
    params.head_dim <= 64 ? run.template operator()<8>() : run.template operator()<16>();
}

extern "C" void row_statistics(const RowStatisticsParams* params, int64_t is_bf16) {
    is_bf16 ? run_statistics<dev::bf16>(*params) : run_statistics<dev::fp16>(*params);
}

extern "C" void sum_gradients(const SumGradientsParams* params, int64_t is_bf16) {
    emu::launch(params->num_merges * params->block, merge::kThreads, 0,
                is_bf16 ? merge::gradients<dev::bf16> : merge::gradients<dev::fp16>, *params);
}
