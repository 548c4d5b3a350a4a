// Forward for sm_90a: softmax(scale q k^T) v over the two key ranges of each tile
// (docs/kernels/cuda-hopper-forward.md). A persistent block works through its share of the items: a producer warpgroup
// loads queries and keys ahead, consumer warpgroups of 64 query rows each multiply.
#pragma once
#include "forward/hopper/consumer.h"
#include "forward/hopper/producer.h"

namespace hopper {

template <class C>
DEVICE void init_barriers(const Shared<C>& shared) {
    constexpr int kSigners = 4 * C::kConsumers;  // every consumer warp
    for (int i = 0; i < C::kQueryBuffers; ++i) {
        dev::mbar_init(shared.query_full(i), 1);
        dev::mbar_init(shared.query_empty(i), kSigners);
    }
    for (int i = 0; i < C::kPairs; ++i) {
        dev::mbar_init(shared.key_full(i), 1);
        dev::mbar_init(shared.key_empty(i), kSigners);
        dev::mbar_init(shared.value_full(i), 1);
        dev::mbar_init(shared.value_empty(i), kSigners);
    }
    dev::fence_mbar_init();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) forward(const __grid_constant__ KernelParams p) {
    const Shared<C> shared{dev::shared_address(dev::dynamic_shared())};
    if (threadIdx.x == 0) {
        dev::tma_prefetch(&p.q);
        for (const KeyMaps* maps : {&p.k, &p.v, &p.k_tiv, &p.v_tiv}) {
            dev::tma_prefetch(&maps->tile);
            dev::tma_prefetch(&maps->box);
        }
        init_barriers(shared);
    }
    __syncthreads();

    if (threadIdx.x < kWarpgroup) {
        dev::setmaxnreg_dec<C::kProducerRegisters>();
        if (threadIdx.x == 0) produce(p, shared);
    } else {
        dev::setmaxnreg_inc<C::kConsumerRegisters>();
        consume(p, shared);
    }
}

}  // namespace hopper
