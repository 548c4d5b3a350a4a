// Arguments of the Hopper forward kernel.
#pragma once
#include "common/device.h"
#include "common/shares.h"
#include "forward/hopper/row_counts.h"
#include "forward/params.h"

namespace hopper {

struct KeyMaps {
    dev::TensorMap tile, box;  // boxes of BLOCK_K and of kBoxRows rows
};

struct KernelParams {
    dev::TensorMap q;  // boxes of 64 rows
    KeyMaps k, v;
    KeyMaps k_tiv, v_tiv;  // maps of k and v again where range A lies in them
    ForwardParams forward;
    Shares shares;  // of the items, tile * heads + head
};

}  // namespace hopper
