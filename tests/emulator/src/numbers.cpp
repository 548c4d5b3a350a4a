// 16-bit floating point.
#include "common/device.h"

namespace emu {

float from_bf16(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }

uint16_t to_bf16(float x) {
    if (std::isnan(x)) return 0x7fff;
    const uint32_t bits = __float_as_uint(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest even
}

float from_fp16(uint16_t x) {
    _Float16 half;
    memcpy(&half, &x, 2);
    return half;
}

uint16_t to_fp16(float x) {
    if (std::isnan(x)) return 0x7fff;
    return __builtin_bit_cast(uint16_t, static_cast<_Float16>(x));
}

}  // namespace emu
