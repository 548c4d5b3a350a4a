// What the Hopper forward needs beside ForwardParams and Shares; plain C++, for hosts.
#pragma once
#include <cstdint>

namespace hopper {

// Rows of q, of k and v, of k_tiv and v_tiv (0 where no TIV row exists).
struct RowCounts {
    int64_t q, k, tiv;
};

}  // namespace hopper
