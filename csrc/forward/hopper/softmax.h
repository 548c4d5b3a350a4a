// Softmax of one warpgroup's rows, one step of keys after another. Accumulators of wgmma (PTX ISA, m64nNk16): a thread
// holds two rows, 8 apart, and of each 8 columns two neighbours; four threads (a quad) share a row. Element i is in row
// i / 2 % 2.
#pragma once
#include "common/device.h"

namespace hopper {

DEVICE float quad_max(float x) {
    x = fmaxf(x, dev::shfl_xor(x, 1));
    return fmaxf(x, dev::shfl_xor(x, 2));
}

DEVICE float quad_sum(float x) {
    x += dev::shfl_xor(x, 1);
    return x + dev::shfl_xor(x, 2);
}

// Scores arrive unscaled; scale and maximum enter each exponent as one multiply-add.
struct RowSoftmax {
    float scale;                                      // > 0, carries log2(e)
    float max[2] = {dev::neg_inf(), dev::neg_inf()};  // of unscaled scores
    float sum[2] = {0, 0};                            // of this thread's columns

    // Weights of a step's scores, and the factors that older sums and outputs shrink by. Some key of the first step is
    // not hidden, of every row.
    template <int kCount>
    DEVICE void next(float (&s)[kCount], float (&decay)[2]) {
        const float old[2] = {max[0], max[1]};
#pragma unroll
        for (int i = 0; i < kCount; ++i) max[i / 2 % 2] = fmaxf(max[i / 2 % 2], s[i]);
        max[0] = quad_max(max[0]);
        max[1] = quad_max(max[1]);
        const float shift[2] = {max[0] * scale, max[1] * scale};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            decay[r] = dev::ex2(old[r] * scale - shift[r]);
            sum[r] *= decay[r];
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            s[i] = dev::ex2(s[i] * scale - shift[i / 2 % 2]);
            sum[i / 2 % 2] += s[i];
        }
    }

    // Base-2 LSE of row r and the factor that makes its output a mean; all columns seen. A row without keys has LSE
    // -inf and output 0.
    DEVICE float finish(int r, float& norm) {
        const float total = quad_sum(sum[r]);
        norm = total == 0 ? 0 : 1 / total;
        return total == 0 ? dev::neg_inf() : max[r] * scale + dev::lg2(total);
    }
};

}  // namespace hopper
