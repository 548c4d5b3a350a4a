// The Ampere forward in the tiles that ship, on the emulator, for test_ampere_forward.py.
#include "emulator/launch.h"
#include "forward/ampere/kernel.h"

namespace {

template <class C>
void run(const ForwardParams& params) {
    emu::launch(params.num_tiles * params.heads, C::kThreads, C::kSharedBytes, ampere::forward<C>, params);
}

}  // namespace

extern "C" void forward(const ForwardParams* params, int64_t is_bf16) {
    ampere::with_config(params->head_dim, is_bf16 ? ElementType::bf16 : ElementType::fp16, [&]<class C>(C) { run<C>(*params); });
}

extern "C" void forward_tile(int64_t head_dim, int32_t* rows_and_keys) {
    ampere::with_config(head_dim, ElementType::bf16,
                        [&]<class C>(C) { rows_and_keys[0] = C::kBlockQ, rows_and_keys[1] = C::kBlockK; });
}
