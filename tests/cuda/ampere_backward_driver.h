// What the drivers of the mma.sync gradient kernels share.
#pragma once
#include "backward/ampere/kernel.h"
#include "backward/visit.h"
#include "backward_driver.h"

template <template <class, int, Owner> class ConfigOf, class Widths>
void run_gradients(const GradientParams& params, int64_t is_bf16) {
    for (Owner owner : {Owner::queries, Owner::keys}) {
        backward::with_config<ConfigOf, Widths>(owner, params.head_dim, element_type(is_bf16), [&]<class C>(C) {
            emu::launch(backward::items(owner, params), C::kThreads, C::kSharedBytes, ampere::gradients<C>, params);
        });
    }
}
