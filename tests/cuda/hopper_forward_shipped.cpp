// The Hopper forward in the configurations that ship.
#include "hopper_forward_driver.h"

extern "C" void forward(const ForwardParams* params, const hopper::RowCounts* rows, const Shares* shares,
                        int64_t is_bf16) {
    with_config<hopper::ForwardConfigOf, hopper::ForwardWidths>(params->head_dim, element_type(is_bf16),
                                                                [&]<class C>(C) { run<C>(*params, *rows, *shares); });
}
