// The forward of bfloat16 on processors with AMX. Like variant.h, all of it in an unnamed namespace.
#define TIVTOK_LANES 16
#define TIVTOK_REGISTERS 32
#include <cstdint>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "params.h"

namespace tivtok {
namespace {
// clang-format off: each builds on those before it
#include "simd.h"
#include "tiles.h"
#include "rows.h"
#include "matrix.h"
#include "rows_amx.h"
#include "forward_amx.h"
#include "forward_unit.h"
// clang-format on

void amx_forward_unit(const ForwardParams& params, const Unit& unit, int64_t key_head, const Next& next, float scale,
                      float* scratch) {
    const TileRegisters configured;
    forward_unit(params, unit, key_head, next, scale, scratch);
}
}  // namespace

extern const ForwardKernels amx_forward;
const ForwardKernels amx_forward = {forward_scratch, amx_forward_unit, forward_merge};
}  // namespace tivtok
