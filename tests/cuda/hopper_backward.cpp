// The wgmma gradient kernels in small steps and few stages, so that small cases have several steps, full ones and
// tails.
#include "backward/hopper/kernel.h"
#include "backward_driver.h"

template <Owner kOwner>
void run(const GradientParams& params, bool is_bf16) {
    const auto launch = [&]<class Element>(Element) {
        using C = hopper::GradientConfig<Element, 64, kOwner, 32, 2, 40>;
        const int heads = kOwner == Owner::keys ? params.heads / params.group : params.heads;
        emu::launch(params.num_tiles * heads, C::kThreads, C::kSharedBytes, hopper::gradients<C>, params);
    };
    is_bf16 ? launch(dev::bf16{}) : launch(dev::fp16{});
}

extern "C" void query_gradients(const GradientParams* params, int64_t is_bf16) {
    run<Owner::queries>(*params, is_bf16);
}

extern "C" void key_gradients(const GradientParams* params, int64_t is_bf16) { run<Owner::keys>(*params, is_bf16); }
