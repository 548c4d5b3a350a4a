// The mma.sync gradient kernels in small tiles, so that small cases have several steps, full ones and tails.
#include "backward/ampere/kernel.h"
#include "backward_driver.h"

template <class Element, int, Owner kOwner>
using Small = ampere::GradientConfig<Element, 32, kOwner, 1, 32, 1, 2>;

void gradients(Owner owner, const GradientParams& params, ElementType type) {
    backward::with_config<Small, PaddedWidths<32>>(owner, params.head_dim, type,
                                                   [&]<class C>(C) { run<C>(ampere::gradients<C>, params); });
}
