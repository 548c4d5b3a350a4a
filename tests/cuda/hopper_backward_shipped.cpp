// The wgmma gradient kernel in the tiles that ship.
#include "hopper_backward_driver.h"

extern "C" void gradients(const GradientParams* params, int64_t is_bf16) {
    run_gradients<hopper::GradientPairOf, hopper::GradientWidths>(*params, is_bf16);
}
