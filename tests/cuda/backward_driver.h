// What the drivers of the backward kernels share: the row statistics.
#pragma once
#include "backward/statistics/kernel.h"
#include "driver.h"

extern "C" void row_statistics(const RowStatisticsParams* params, int64_t is_bf16) {
    with_element(element_type(is_bf16), [&]<class Element>(Element) {
        const auto run = [&]<int kLanes>() {
            constexpr int kRows = statistics::kThreads / kLanes;
            emu::launch((params->rows + kRows - 1) / kRows * params->heads, statistics::kThreads, 0,
                        statistics::rows<Element, kLanes>, *params);
        };
        params->head_dim <= 64 ? run.template operator()<8>() : run.template operator()<16>();
    });
}
