// The wgmma gradient kernels in the tiles that ship.
#include "backward/hopper/kernel.h"
#include "backward_driver.h"

template <Owner kOwner>
void run(const GradientParams& params) {
    const auto launch = [&]<class C>(C) {
        const int heads = kOwner == Owner::keys ? params.heads / params.group : params.heads;
        emu::launch(params.num_tiles * heads, C::kThreads, C::kSharedBytes, hopper::gradients<C>, params);
    };
    params.head_dim == 64 ? launch(hopper::GradientConfigOf<dev::bf16, 64, kOwner>{})
                          : launch(hopper::GradientConfigOf<dev::bf16, 128, kOwner>{});
}

extern "C" void query_gradients(const GradientParams* params, int64_t) { run<Owner::queries>(*params); }

extern "C" void key_gradients(const GradientParams* params, int64_t) { run<Owner::keys>(*params); }
