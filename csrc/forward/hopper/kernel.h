// Forward for sm_90a: softmax(scale q k^T) v over the two key ranges of each tile
// (docs/kernels/cuda-hopper-forward.md). A persistent block works through its share of the items: a producer warpgroup
// loads queries and keys ahead, consumer warpgroups of 64 query rows each multiply.
#pragma once
#include "forward/hopper/consumer.h"
#include "forward/hopper/producer.h"

namespace hopper {

template <class C>
DEVICE void init_barriers(const Shared<C>& shared) {
    constexpr int kLoaders = 2;                  // the TMA thread and the copying warps
    constexpr int kSigners = 4 * C::kConsumers;  // every consumer warp
    for (int i = 0; i < C::kQueryBuffers; ++i) {
        dev::mbar_init(shared.query_full(i), 1);
        dev::mbar_init(shared.query_empty(i), kSigners);
    }
    for (int i = 0; i < C::kPairs; ++i) {
        dev::mbar_init(shared.key_full(i), kLoaders);
        dev::mbar_init(shared.key_empty(i), kSigners);
        dev::mbar_init(shared.value_full(i), kLoaders);
        dev::mbar_init(shared.value_empty(i), kSigners);
    }
    dev::fence_mbar_init();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) forward(const __grid_constant__ KernelParams p) {
    const Shared<C> shared{dev::shared_address(dev::dynamic_shared())};
    if (threadIdx.x == 0) {
        for (const dev::TensorMap* map : {&p.q, &p.k, &p.v, &p.k_tiv, &p.v_tiv}) dev::tma_prefetch(map);
        init_barriers(shared);
    }
    __syncthreads();

    const int first = p.shares.bounds[blockIdx.x], last = p.shares.bounds[blockIdx.x + 1];
    if (threadIdx.x < kWarpgroup) {
        dev::setmaxnreg_dec<C::kProducerRegisters>();
        if (threadIdx.x == 0) load_whole_tiles(p, shared, first, last);
        if (threadIdx.x >= 32) copy_joined_tails(p, shared, first, last);
    } else {
        dev::setmaxnreg_inc<C::kConsumerRegisters>();
        consume(p, shared, first, last);
    }
}

}  // namespace hopper
