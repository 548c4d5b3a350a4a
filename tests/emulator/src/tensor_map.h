// The emulator's reading of a tensor map.
#pragma once
#include "cuda.h"

namespace emu {

struct TensorMapFields {
    uint8_t* base;
    uint64_t sizes[5], strides[5];  // strides in bytes; the first is the element size
    uint32_t box[5];
    uint16_t rank;
    uint16_t swizzle_bytes;  // 0: none

    uint32_t element_bytes() const { return strides[0]; }
    uint32_t box_bytes() const {
        uint32_t bytes = element_bytes();
        for (int d = 0; d < rank; ++d) bytes *= box[d];
        return bytes;
    }
    // Where byte `address` of a tile lies when the 16-byte chunks are permuted within the swizzle pattern.
    uint32_t swizzled(uint32_t address) const {
        const uint32_t mask = swizzle_bytes == 128 ? 7 : swizzle_bytes == 64 ? 3 : swizzle_bytes == 32 ? 1 : 0;
        return address ^ (address >> 7 & mask) << 4;
    }
};
static_assert(sizeof(TensorMapFields) <= sizeof(CUtensorMap));

inline TensorMapFields& fields(CUtensorMap& map) { return reinterpret_cast<TensorMapFields&>(map); }
inline const TensorMapFields& fields(const CUtensorMap& map) { return reinterpret_cast<const TensorMapFields&>(map); }

}  // namespace emu
