// The mma.sync gradient kernels in the tiles that ship.
#include "backward/ampere/kernel.h"
#include "backward_driver.h"

void gradients(Owner owner, const GradientParams& params, ElementType type) {
    backward::with_config<ampere::GradientConfigOf, ampere::GradientWidths>(
        owner, params.head_dim, type, [&]<class C>(C) { run<C>(ampere::gradients<C>, params); });
}
