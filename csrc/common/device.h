// Device primitives: one name and one meaning on two targets. Under nvcc they are inline PTX (ptx.h, ptx_hopper.h);
// under any other compiler they come from the emulator in tests/emulator, which runs the kernels on a CPU and checks
// them.
//
// Every architecture
//   dynamic_shared(), shared_address(p)       the block's shared memory, 1024-byte aligned; its 32-bit address
//   __syncthreads(), __syncwarp(mask)         as in CUDA
//   bar_sync(id, threads), bar_arrive(...)    named barriers 1..15; ptxas reserves all 16 if id is no constant
//   shfl_xor(v, mask), shfl_idx(v, lane)      4-byte values, the whole warp
//   ldmatrix_x4(r, addr), ldmatrix_x4_trans   four 8 x 8 matrices of 16 bits; lane l names row l % 8 of matrix l / 8
//   mma_m16n8k16<E>(d, a, b0, b1)             d += a b, accumulated in float32
//   cp_async_16(dst, src, valid)              16 bytes global -> shared, zeros where not valid; cp_async_8: 8 bytes
//   cp_async_commit(), cp_async_wait<N>()     until at most N groups of this thread are pending
//   pack<E>(lo, hi), unpack<E>(x, lo, hi)     two floats <-> two 16-bit values, to nearest even
//   ex2(x), lg2(x), neg_inf()                 approximate 2^x and log2 x, subnormals flushed to 0
//   pack_operand<E>(a, sums)                  accumulators as the left operand of the next product
//
// sm_90a
//   mbar_init(bar, count), fence_mbar_init()  by one thread; a barrier of the block before anybody uses it
//   mbar_arrive(bar)                          one arrival
//   mbar_arrive_expect_tx(bar, bytes)         one arrival, and bytes that TMA has to deliver in this phase
//   mbar_try_wait(bar, parity), mbar_wait     has the phase of this parity completed? / until it has
//   fence_proxy_async()                       generic accesses to shared memory before, async ones (TMA, wgmma) after
//   tma_load_{2,3,4}d(dst, map, bar, c0, ..)  the box at c0, .. -> shared; zeros for what lies outside the tensor
//   tma_store_{2,3,4}d(map, src, c0, ..)      shared -> the box; nothing outside the tensor is written
//   tma_store_commit(), tma_store_wait<N>()   until at most N groups are pending; _wait_read: only their reads
//   tma_prefetch(map)                         the descriptor into its cache
//   stmatrix_x4(addr, r), stmatrix_x4_trans   the reverse of ldmatrix
//   wgmma_ss<E, Major A, Major B>(d, A, B, c) d = A B, + d if c; m64 nN k16, N = 2 size of d; A, B descriptors
//   wgmma_rs<E, Major B>(d, a, B, c)          the same with A in four registers
//   wgmma_fence(), _commit(), _wait<N>()      before the first; closes a group; until at most N groups are pending
//   wgmma_hold(d)                             keeps the compiler from moving uses of d across a fence or a wait
//   wgmma_descriptor(addr, lead, stride, swz)  of an operand in shared memory; wgmma_advanced(d, bytes): further on
//   setmaxnreg_inc<N>(), setmaxnreg_dec<N>()  registers per thread, by whole warpgroups
//
// Shared memory is dynamic only: the emulator could not check static __shared__ variables, so they do not exist here.
#pragma once
#include <cstdint>

namespace dev {

// 16-bit storage types: kernels are templates over one of them, called E or Element.
struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

// Which index of a wgmma operand runs along memory.
enum class Major { K, MN };

// Codes of the swizzle field in a wgmma descriptor; the number is the width of the pattern in bytes.
enum class Swizzle : uint64_t { none = 0, b128 = 1, b64 = 2, b32 = 3 };

}  // namespace dev

#ifdef __CUDACC__
#include "common/ptx.h"
#include "common/ptx_hopper.h"
#else
#include "emulator/device.h"
#endif

namespace dev {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

DEVICE float neg_inf() { return -__builtin_huge_valf(); }

// The accumulators of a product lie as the left operand of the next one wants them, 16 columns in a[0] ... a[3].
template <class Element>
DEVICE void pack_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack<Element>(left[0], left[1]);
    a[1] = pack<Element>(left[2], left[3]);
    a[2] = pack<Element>(right[0], right[1]);
    a[3] = pack<Element>(right[2], right[3]);
}

// The same for all columns of a warpgroup's product.
template <class Element, int kSteps>
DEVICE void pack_operand(uint32_t (&a)[kSteps][4], const float (&sums)[8 * kSteps]) {
#pragma unroll
    for (int i = 0; i < 4 * kSteps; ++i) a[i / 4][i % 4] = pack<Element>(sums[2 * i], sums[2 * i + 1]);
}

DEVICE void mbar_wait(uint32_t bar, uint32_t parity) {
    while (!mbar_try_wait(bar, parity)) {
    }
}

// lead and stride in bytes, as in the PTX ISA ("matrix descriptor"): for a swizzled K-major operand lead is unused and
// stride is the distance of 8-row groups (8 * swizzle bytes when rows are packed); for a swizzled MN-major operand lead
// is the distance of swizzle-wide column blocks and stride that of 8-row (k) groups.
DEVICE uint64_t wgmma_descriptor(uint32_t address, uint32_t lead, uint32_t stride, Swizzle swizzle) {
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t(lead >> 4) << 16 | uint64_t(stride >> 4) << 32 |
           uint64_t(swizzle) << 62;
}

// The same operand, so many bytes further. An address stays within the low word of its descriptor, and whoever knows
// that computes in 32 bits.
DEVICE uint64_t wgmma_advanced(uint64_t descriptor, uint32_t bytes) {
    return descriptor >> 32 << 32 | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

}  // namespace dev
