// What the drivers of the wgmma gradient kernel share.
#pragma once
#include "backward/hopper/kernel.h"
#include "backward_driver.h"

template <template <class, int> class PairOf, class Widths>
void run_gradients(const GradientParams& params, int64_t is_bf16) {
    with_config<PairOf, Widths>(params.head_dim, element_type(is_bf16), [&]<class P>(P) {
        emu::launch(params.shares.blocks, P::kThreads, P::kSharedBytes, hopper::gradients<P>, params);
    });
}
