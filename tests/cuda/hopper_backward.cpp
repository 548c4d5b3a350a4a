// The wgmma gradient kernels in small steps and few stages, so that small cases have several steps, full ones and
// tails.
#include "backward/hopper/kernel.h"
#include "backward_driver.h"

template <class Element, int, Owner kOwner>
using Small = hopper::GradientConfig<Element, 64, kOwner, 32, 2, 40>;

void gradients(Owner owner, const GradientParams& params, ElementType type) {
    backward::with_config<Small, PaddedWidths<64>>(owner, params.head_dim, type,
                                                   [&]<class C>(C) { run<C>(hopper::gradients<C>, params); });
}
