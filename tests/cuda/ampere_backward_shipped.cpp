// The mma.sync gradient kernels in the tiles that ship.
#include "backward/ampere/kernel.h"
#include "backward_driver.h"

template <Owner kOwner>
void run(const GradientParams& params, bool is_bf16) {
    const auto launch = [&]<class C>(C) {
        const int heads = kOwner == Owner::keys ? params.heads / params.group : params.heads;
        emu::launch(params.num_tiles * heads, C::kThreads, C::kSharedBytes, ampere::gradients<C>, params);
    };
    const auto with_width = [&]<class Element>(Element) {
        if (params.head_dim <= 32) return launch(ampere::GradientConfigOf<Element, 32, kOwner>{});
        if (params.head_dim <= 64) return launch(ampere::GradientConfigOf<Element, 64, kOwner>{});
        return launch(ampere::GradientConfigOf<Element, 128, kOwner>{});
    };
    is_bf16 ? with_width(dev::bf16{}) : with_width(dev::fp16{});
}

extern "C" void query_gradients(const GradientParams* params, int64_t is_bf16) {
    run<Owner::queries>(*params, is_bf16);
}

extern "C" void key_gradients(const GradientParams* params, int64_t is_bf16) { run<Owner::keys>(*params, is_bf16); }
