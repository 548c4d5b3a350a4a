// What the drivers of the Hopper forward share.
#pragma once
#include "driver.h"
#include "forward/hopper/arguments.h"
#include "forward/hopper/kernel.h"

template <class C>
void run(const ForwardParams& params, const hopper::RowCounts& rows, const Shares& shares) {
    emu::launch(shares.blocks, C::kThreads, hopper::Shared<C>::kBytes, hopper::forward<C>,
                hopper::arguments<C>(cuTensorMapEncodeTiled, params, rows, shares));
}
