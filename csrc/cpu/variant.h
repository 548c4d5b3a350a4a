// The body of a translation unit: one instruction set's kernels, from TIVTOK_LANES, TIVTOK_REGISTERS and its name.
// Everything is in an unnamed namespace, so that the linker cannot put code for one machine in another's place.
#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "params.h"

namespace tivtok {
namespace {
// clang-format off: each builds on those before it
#include "simd.h"
#include "tiles.h"
#include "rows.h"
#include "forward.h"
#include "forward_unit.h"
#include "backward.h"
#include "backward_runs.h"
// clang-format on
}  // namespace

extern const Variant TIVTOK_VARIANT;
const Variant TIVTOK_VARIANT = {
    {forward_scratch, forward_unit, forward_merge},
    {backward_scratch, backward_unit, merge_q, merge_keys, run_scratch, row_gradients, key_gradients},
};
}  // namespace tivtok
