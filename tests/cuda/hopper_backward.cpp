// The wgmma gradient kernel in small steps and few stages, so that small cases have several steps, full ones and tails.
#include "hopper_backward_driver.h"

template <class Element, int>
using Small = hopper::GradientPair<hopper::GradientConfig<Element, 64, Owner::queries, 32>,
                                   hopper::GradientConfig<Element, 64, Owner::keys, 32>, 2, 3, 40>;

extern "C" void gradients(const GradientParams* params, int64_t is_bf16) {
    run_gradients<Small, PaddedWidths<64>>(*params, is_bf16);
}
