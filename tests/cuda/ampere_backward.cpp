// The mma.sync gradient kernels in small tiles, so that small cases have several steps, full ones and tails.
#include "ampere_backward_driver.h"

template <class Element, int, Owner kOwner>
using Small = ampere::GradientConfig<Element, 32, kOwner, 1, 32, 1, 2>;

extern "C" void gradients(const GradientParams* params, int64_t is_bf16) {
    run_gradients<Small, PaddedWidths<32>>(*params, is_bf16);
}
