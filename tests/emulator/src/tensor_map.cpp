// cuTensorMapEncodeTiled with the limits that the driver API's reference states, and maps that kernels write
// themselves.
#include "tensor_map.h"

#include <algorithm>
#include <cstring>

#include "state.h"

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

namespace emu {

// A weak read and write of all 128 bytes (PTX ISA, "tensormap.replace"); numbers as its tables have them.
void replace_in_map(uint32_t map, MapField field, int dimension, uint64_t value) {
    void* pc = CALLER;
    const uint32_t offset = map - kSharedBase;
    if (!inside_shared(offset, sizeof(CUtensorMap), pc, "tensor map")) abandon();
    if (map % alignof(CUtensorMap)) report("misaligned", pc, "a tensor map at shared address %u", map);
    thread_reads_shared(offset, sizeof(CUtensorMap), block.current, pc, "tensormap.replace");
    thread_writes_shared(offset, sizeof(CUtensorMap), block.current, pc, "tensormap.replace");
    TensorMapFields& f = *reinterpret_cast<TensorMapFields*>(block.shared + offset);
    bool valid = true;
    switch (field) {
        case MapField::global_address:
            f.base = reinterpret_cast<uint8_t*>(value);
            valid = value % 16 == 0;
            break;
        case MapField::rank:  // less one
            f.rank = value + 1;
            valid = value < 5;
            break;
        case MapField::box_dim:
            f.box[dimension] = value;
            valid = value >= 1 && value <= 256;
            break;
        case MapField::global_dim:
            f.sizes[dimension] = value;
            valid = value >= 1;
            break;
        case MapField::global_stride:  // in bytes; there is none of the innermost dimension
            f.strides[dimension + 1] = value;
            valid = value % 16 == 0 && value < 1ull << 40;
            break;
        case MapField::element_stride:
            valid = value == 1;
            break;
        case MapField::elemtype: {  // f16, f32, bf16: others are not in use here
            f.strides[0] = value == 7 ? 4 : 2;
            valid = value == 6 || value == 7 || value == 10;
            break;
        }
        case MapField::interleave_layout:
        case MapField::fill_mode:
            valid = value == 0;
            break;
        case MapField::swizzle_mode:
            f.swizzle_bytes = value ? 16u << value : 0;
            valid = value <= 3;
            break;
    }
    if (!valid) report("tma", pc, "tensormap.replace of field %d by %lu", int(field), (unsigned long)value);
}

namespace {

// Whether the current thread knows that one of these threads has come so far.
bool is_known(const std::vector<std::pair<int, Epoch>>& events) {
    const Clock& known = block.self().known.all;
    return std::any_of(events.begin(), events.end(), [&](const auto& e) { return known[e.first] >= e.second; });
}

}  // namespace

void acquire_map(const void* map) {
    void* pc = CALLER;
    const auto found = block.maps.find(map);
    if (found == block.maps.end() || !is_known(found->second.published)) {
        return report("proxy-fence", pc, "fence.proxy.tensormap of a map that nobody is known to have published");
    }
    found->second.acquired.emplace_back(block.current, block.self().known.all[block.current]);
}

// A map that this launch wrote must have been published, and acquired by somebody whom the current thread knows of.
void check_map(const CUtensorMap* map, void* pc, const char* what) {
    if (!is_global(map)) return;
    const auto found = block.maps.find(map);
    if (found != block.maps.end() && is_known(found->second.acquired)) return;
    check_global(map, sizeof *map, false, pc, what);
    if (is_written_in_launch(map)) {
        report("proxy-fence", pc, "%s by a tensor map that no fence.proxy.tensormap has acquired", what);
    }
}

}  // namespace emu
