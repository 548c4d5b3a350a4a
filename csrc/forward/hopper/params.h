// Arguments of the Hopper forward kernel.
#pragma once
#include "common/device.h"
#include "forward/hopper/shares.h"
#include "forward/params.h"

namespace hopper {

struct KernelParams {
    dev::TensorMap q;             // boxes of 64 rows
    dev::TensorMap k, v;          // boxes of BLOCK_K rows
    dev::TensorMap k_tiv, v_tiv;  // the same; maps of k and v again where range A lies in them
    ForwardParams forward;
    Shares shares;
};

}  // namespace hopper
