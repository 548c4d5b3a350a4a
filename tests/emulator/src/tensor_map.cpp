// cuTensorMapEncodeTiled with the limits that the driver API's reference states.
#include "tensor_map.h"

#include <cstring>

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    const uint32_t element = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
    const uint32_t swizzle_bytes = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16u << swizzle;
    bool valid = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0 &&
                 rank >= 1 && rank <= 5 && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
                 fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    for (uint32_t d = 0; valid && d < rank; ++d) {
        valid = sizes[d] >= 1 && sizes[d] <= 1ull << 32 && box[d] >= 1 && box[d] <= 256 && element_strides[d] == 1;
        if (d + 1 < rank) valid = valid && strides[d] % 16 == 0 && strides[d] < 1ull << 40;
    }
    const uint32_t inner = valid ? box[0] * element : 0;
    valid = valid && inner % 16 == 0 && (!swizzle_bytes || inner <= swizzle_bytes);
    if (!valid) return CUDA_ERROR_INVALID_VALUE;

    memset(map, 0, sizeof *map);
    emu::TensorMapFields& f = emu::fields(*map);
    f.base = static_cast<uint8_t*>(base), f.rank = rank, f.swizzle_bytes = swizzle_bytes, f.strides[0] = element;
    for (uint32_t d = 0; d < rank; ++d) {
        f.sizes[d] = sizes[d], f.box[d] = box[d];
        if (d + 1 < rank) f.strides[d + 1] = strides[d];
    }
    return CUDA_SUCCESS;
}
