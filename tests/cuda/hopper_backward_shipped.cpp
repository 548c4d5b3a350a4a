// The wgmma gradient kernels in the tiles that ship.
#include "backward/hopper/kernel.h"
#include "backward_driver.h"

void gradients(Owner owner, const GradientParams& params, ElementType type) {
    backward::with_config<hopper::GradientConfigOf, hopper::GradientWidths>(
        owner, params.head_dim, type, [&]<class C>(C) { run<C>(hopper::gradients<C>, params); });
}
