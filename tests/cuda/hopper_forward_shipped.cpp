// The Hopper forward in the configurations that ship.
#include "hopper_forward_driver.h"

extern "C" void forward(const ForwardParams* params, const hopper::RowCounts* rows, const hopper::Shares* shares,
                        int64_t is_bf16) {
    const auto with_type = [&]<class Element>(Element) {
        params->head_dim == 64 ? run<hopper::ForwardConfigOf<Element, 64>>(*params, *rows, *shares)
                               : run<hopper::ForwardConfigOf<Element, 128>>(*params, *rows, *shares);
    };
    is_bf16 ? with_type(dev::bf16{}) : with_type(dev::fp16{});
}
