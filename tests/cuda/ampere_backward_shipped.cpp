// The mma.sync gradient kernels in the tiles that ship.
#include "ampere_backward_driver.h"

extern "C" void gradients(const GradientParams* params, int64_t is_bf16) {
    run_gradients<ampere::GradientConfigOf, ampere::GradientWidths>(*params, is_bf16);
}
