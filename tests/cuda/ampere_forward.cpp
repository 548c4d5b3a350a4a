// The Ampere forward in small tiles and the merge kernels on the emulator, for test_ampere_forward.py.
#include "common/visit.h"
#include "driver.h"
#include "forward/ampere/kernel.h"

// 32 x 32, so that small cases have several tiles and steps, full ones and tails, and go round the ring.
template <class Element>
using Small = ampere::ForwardConfig<Element, 32, 1, 32, 3, 1, 2>;

extern "C" void forward(const ForwardParams* params, int64_t is_bf16) {
    with_element(element_type(is_bf16), [&]<class Element>(Element) {
        using C = Small<Element>;
        emu::launch(params->num_tiles * params->heads, C::kThreads, C::kSharedBytes, ampere::forward<C>, *params);
    });
}
