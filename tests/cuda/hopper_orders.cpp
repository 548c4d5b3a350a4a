// The Hopper forward with few buffers, so that every order of its warps can be explored.
#include <stdexcept>

#include "hopper_forward_driver.h"

namespace {

int64_t query_buffers, pairs, consumers;

template <int kQueryBuffers, int kPairs, int kConsumers>
bool run_if(const ForwardParams& params, const hopper::RowCounts& rows, const Shares& shares) {
    if (query_buffers != kQueryBuffers || pairs != kPairs || consumers != kConsumers) return false;
    run<hopper::ForwardConfig<dev::bf16, 64, 32, kQueryBuffers, kPairs, kConsumers>>(params, rows, shares);
    return true;
}

}  // namespace

extern "C" void configure(int64_t new_query_buffers, int64_t new_pairs, int64_t new_consumers) {
    query_buffers = new_query_buffers, pairs = new_pairs, consumers = new_consumers;
}

extern "C" void forward(const ForwardParams* params, const hopper::RowCounts* rows, const Shares* shares,
                        int64_t) {
    if (!run_if<1, 2, 2>(*params, *rows, *shares) && !run_if<2, 3, 2>(*params, *rows, *shares) &&
        !run_if<1, 2, 3>(*params, *rows, *shares))
        throw std::invalid_argument("no such configuration");
}
