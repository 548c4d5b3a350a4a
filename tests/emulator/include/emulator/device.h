// The emulator's side of csrc/common/device.h: what a kernel sees of CUDA and of the primitives. Included by that file
// only.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))  // so that reports name the caller's line
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define DEVICE __forceinline__

namespace emu {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
    Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Constant for the life of a thread: the compiler may keep them in registers.
[[gnu::const]] const Dim3& thread_idx();
[[gnu::const]] const Dim3& block_idx();
[[gnu::const]] const Dim3& block_dim();
[[gnu::const]] const Dim3& grid_dim();

enum class Shuffle { idx, bfly, up, down };
uint32_t shuffle(uint32_t value, Shuffle mode, int argument, uint32_t mask);
void matrix_load(uint32_t* registers, int count, bool transposed, uint32_t address);
void matrix_store(const uint32_t* registers, int count, bool transposed, uint32_t address);
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool is_bf16);
void cp_async(uint32_t destination, const void* source, uint32_t size, bool valid);  // of 4, 8 or 16 bytes
void cp_async_wait(int pending);
void tma_load(uint32_t destination, const CUtensorMap* map, uint32_t bar, int rank, const int* coordinates);
void tma_store(const CUtensorMap* map, uint32_t source, int rank, const int* coordinates);
void tma_store_wait(int pending, bool reads_only);
void wgmma_wait(int pending);
// One wgmma m64 nN k16 of the calling warpgroup; a is null for an A operand in shared memory.
void wgmma(float* d, int n, const uint32_t* a, uint64_t desc_a, uint64_t desc_b, bool accumulate, bool is_bf16,
           bool a_is_mn, bool b_is_mn);
void set_max_registers(int count);

// What translated PTX uses besides.
void whole_block_sync(int barrier);
uint32_t elect(uint32_t mask);  // the lane
void mbar_arrive(uint32_t bar, uint32_t count);
void mbar_invalidate(uint32_t bar);
enum class MapField {
    global_address,
    rank,
    box_dim,
    global_dim,
    global_stride,
    element_stride,
    elemtype,
    interleave_layout,
    swizzle_mode,
    fill_mode
};
void replace_in_map(uint32_t map, MapField field, int dimension, uint64_t value);
void publish_map(void* destination, uint32_t map);  // tensormap.cp_fenceproxy
void acquire_map(const void* map);                  // fence.proxy.tensormap

float from_bf16(uint16_t x);
float from_fp16(uint16_t x);
uint16_t to_bf16(float x);
uint16_t to_fp16(float x);

}  // namespace emu

#define threadIdx (emu::thread_idx())
#define blockIdx (emu::block_idx())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())
using dim3 = emu::Dim3;

// CUDA's vector types and functions that the kernels use.
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float __uint_as_float(uint32_t x) { return __builtin_bit_cast(float, x); }

void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffffu);

namespace dev {

using TensorMap = CUtensorMap;

[[gnu::const]] uint8_t* dynamic_shared();
uint32_t shared_address(const void* p);
void bar_sync(int id, int threads);
void bar_arrive(int id, int threads);
void cp_async_16(uint32_t destination, const void* source, bool valid);
void cp_async_8(uint32_t destination, const void* source, bool valid);
void cp_async_commit();
void mbar_init(uint32_t bar, uint32_t count);
void fence_mbar_init();
void fence_proxy_async();
void mbar_arrive(uint32_t bar);
void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes);
bool mbar_try_wait(uint32_t bar, uint32_t parity);
void tma_store_commit();
void wgmma_fence();
void wgmma_commit();

template <class T>
DEVICE T shfl_xor(T value, int lane_mask) {
    static_assert(sizeof(T) == 4);
    using emu::Shuffle;
    return __builtin_bit_cast(T,
                              emu::shuffle(__builtin_bit_cast(uint32_t, value), Shuffle::bfly, lane_mask, 0xffffffffu));
}
template <class T>
DEVICE T shfl_idx(T value, int lane) {
    static_assert(sizeof(T) == 4);
    using emu::Shuffle;
    return __builtin_bit_cast(T, emu::shuffle(__builtin_bit_cast(uint32_t, value), Shuffle::idx, lane, 0xffffffffu));
}

DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) { emu::matrix_load(r, 4, false, address); }
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) { emu::matrix_load(r, 4, true, address); }
DEVICE void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]) { emu::matrix_store(r, 4, false, address); }
DEVICE void stmatrix_x4_trans(uint32_t address, const uint32_t (&r)[4]) { emu::matrix_store(r, 4, true, address); }

template <class Element>
constexpr bool is_bf16 = std::is_same_v<Element, bf16>;

template <class Element>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
    emu::mma_m16n8k16(d, a, b, is_bf16<Element>);
}

template <int kPending>
DEVICE void cp_async_wait() {
    emu::cp_async_wait(kPending);
}

DEVICE float flush_subnormal(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.f, x) : x; }
DEVICE float ex2(float x) { return flush_subnormal(std::exp2(flush_subnormal(x))); }
DEVICE float lg2(float x) { return std::log2(flush_subnormal(x)); }

template <class Element>
DEVICE uint32_t pack(float lo, float hi) {
    if constexpr (is_bf16<Element>) {
        return emu::to_bf16(lo) | uint32_t(emu::to_bf16(hi)) << 16;
    } else {
        return emu::to_fp16(lo) | uint32_t(emu::to_fp16(hi)) << 16;
    }
}
template <class Element>
DEVICE void unpack(uint32_t x, float& lo, float& hi) {
    if constexpr (is_bf16<Element>) {
        lo = emu::from_bf16(uint16_t(x)), hi = emu::from_bf16(uint16_t(x >> 16));
    } else {
        lo = emu::from_fp16(uint16_t(x)), hi = emu::from_fp16(uint16_t(x >> 16));
    }
}

DEVICE void tma_load_2d(uint32_t dst, const TensorMap* map, uint32_t bar, int c0, int c1) {
    const int c[] = {c0, c1};
    emu::tma_load(dst, map, bar, 2, c);
}
DEVICE void tma_load_3d(uint32_t dst, const TensorMap* map, uint32_t bar, int c0, int c1, int c2) {
    const int c[] = {c0, c1, c2};
    emu::tma_load(dst, map, bar, 3, c);
}
DEVICE void tma_load_4d(uint32_t dst, const TensorMap* map, uint32_t bar, int c0, int c1, int c2, int c3) {
    const int c[] = {c0, c1, c2, c3};
    emu::tma_load(dst, map, bar, 4, c);
}
DEVICE void tma_store_2d(const TensorMap* map, uint32_t src, int c0, int c1) {
    const int c[] = {c0, c1};
    emu::tma_store(map, src, 2, c);
}
DEVICE void tma_store_3d(const TensorMap* map, uint32_t src, int c0, int c1, int c2) {
    const int c[] = {c0, c1, c2};
    emu::tma_store(map, src, 3, c);
}
DEVICE void tma_store_4d(const TensorMap* map, uint32_t src, int c0, int c1, int c2, int c3) {
    const int c[] = {c0, c1, c2, c3};
    emu::tma_store(map, src, 4, c);
}
template <int kPending>
DEVICE void tma_store_wait() {
    emu::tma_store_wait(kPending, false);
}
template <int kPending>
DEVICE void tma_store_wait_read() {
    emu::tma_store_wait(kPending, true);
}
DEVICE void tma_prefetch(const TensorMap*) {}

template <int kPending>
DEVICE void wgmma_wait() {
    emu::wgmma_wait(kPending);
}
template <class T, size_t kRegisters>
DEVICE void wgmma_hold(T (&)[kRegisters]) {}

template <class Element, Major kMajorA = Major::K, Major kMajorB = Major::K, size_t kRegisters>
DEVICE void wgmma_ss(float (&d)[kRegisters], uint64_t desc_a, uint64_t desc_b, bool accumulate) {
    static_assert(kRegisters % 16 == 0 && kRegisters <= 128);
    emu::wgmma(d, 2 * kRegisters, nullptr, desc_a, desc_b, accumulate, is_bf16<Element>, kMajorA == Major::MN,
               kMajorB == Major::MN);
}
template <class Element, Major kMajorB = Major::K, size_t kRegisters>
DEVICE void wgmma_rs(float (&d)[kRegisters], const uint32_t (&a)[4], uint64_t desc_b, bool accumulate) {
    static_assert(kRegisters % 16 == 0 && kRegisters <= 128);
    emu::wgmma(d, 2 * kRegisters, a, 0, desc_b, accumulate, is_bf16<Element>, false, kMajorB == Major::MN);
}

template <int kRegisters>
DEVICE void setmaxnreg_inc() {
    emu::set_max_registers(kRegisters);
}
template <int kRegisters>
DEVICE void setmaxnreg_dec() {
    emu::set_max_registers(kRegisters);
}

}  // namespace dev
