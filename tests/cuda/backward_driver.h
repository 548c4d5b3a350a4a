// What the drivers of the backward kernels share: the row statistics and how gradient kernels are launched.
#pragma once
#include "backward/statistics/kernel.h"
#include "backward/visit.h"
#include "driver.h"

template <class C>
void run(void (*kernel)(GradientParams), const GradientParams& params) {
    emu::launch(backward::blocks(C::kOwner, params), C::kThreads, C::kSharedBytes, kernel, params);
}

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

// Each driver's own: the kernel of an owner.
void gradients(Owner owner, const GradientParams& params, ElementType type);

extern "C" void query_gradients(const GradientParams* params, int64_t is_bf16) {
    gradients(Owner::queries, *params, element_type(is_bf16));
}

extern "C" void key_gradients(const GradientParams* params, int64_t is_bf16) {
    gradients(Owner::keys, *params, element_type(is_bf16));
}
