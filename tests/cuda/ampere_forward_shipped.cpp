// The Ampere forward in the tiles that ship, on the emulator, for test_ampere_forward.py.
#include "driver.h"
#include "forward/ampere/kernel.h"

template <class Visit>
void with_shipped(int64_t head_dim, ElementType type, Visit visit) {
    with_config<ampere::ForwardConfigOf, ampere::ForwardWidths>(head_dim, type, visit);
}

extern "C" void forward(const ForwardParams* params, int64_t is_bf16) {
    with_shipped(params->head_dim, element_type(is_bf16), [&]<class C>(C) {
        emu::launch(params->num_tiles * params->heads, C::kThreads, C::kSharedBytes, ampere::forward<C>, *params);
    });
}

extern "C" void forward_tile(int64_t head_dim, int32_t* rows_and_keys) {
    with_shipped(head_dim, ElementType::bf16,
                 [&]<class C>(C) { rows_and_keys[0] = C::kBlockQ, rows_and_keys[1] = C::kBlockK; });
}
