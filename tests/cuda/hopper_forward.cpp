// The Hopper forward with short steps, so that small cases have many of them and the ring goes round.
#include <cstring>

#include "hopper_forward_driver.h"

using Short = hopper::ForwardConfig<dev::bf16, 64, 32, 2, 5, 2, 16>;

extern "C" void forward(const ForwardParams* params, const hopper::RowCounts* rows, const Shares* shares,
                        int64_t) {
    run<Short>(*params, *rows, *shares);
}

// What is wrong with the arguments; message has room for 200 characters.
extern "C" void complaint(const ForwardParams* params, const hopper::RowCounts* rows, const Shares* shares,
                          char* message) {
    try {
        hopper::arguments<Short>(cuTensorMapEncodeTiled, *params, *rows, *shares);
    } catch (const std::invalid_argument& error) {
        strncpy(message, error.what(), 199);
    }
}
