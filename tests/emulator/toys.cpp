// Small correct kernels, each with faults that test_emulator.py plants by name: the emulator must find every one, and
// nothing in the correct ones.
#include <string>

#include "common/device.h"
#include "emulator/launch.h"

namespace {

using dev::bf16;
using dev::Major;
using dev::Swizzle;

std::string planted;
bool fault(const char* name) { return planted == name; }

void set_fault(const char* name) { planted = name; }

// --------------------------------------------------------------------------------------------------------- plain
// accesses

// Every thread passes its number to the thread 32 further on, and back.
__global__ void exchange(int* out, int n) {
    int* s = reinterpret_cast<int*>(dev::dynamic_shared());
    const int t = threadIdx.x, other = (t + 32) % n;
    if (!fault("read of nothing")) s[fault("store past the end") ? t + 1 : t] = t;
    if (!fault("no barrier")) __syncthreads();
    const int got = s[fault("load past the end") ? other + n : other];
    if (!fault("no second barrier")) __syncthreads();
    s[fault("all write one word") ? 0 : t] = got;
    __syncthreads();
    out[t] = s[(t + n - 32) % n];
}

__global__ void exchange_in_warp(int* out) {
    int* s = reinterpret_cast<int*>(dev::dynamic_shared());
    const int t = threadIdx.x;
    s[t] = t;
    if (fault("shuffle for a barrier")) {
        dev::shfl_xor(t, 1);
    } else {
        __syncwarp();
    }
    out[t] = s[t ^ 1];
    if (fault("half a warp shuffles") && t % 32 < 16) dev::shfl_xor(t, 1);
    __syncwarp();
}

// Each block owns n words of `out`; the second read of `in` sees nothing of it.
__global__ void global_memory(const int* in, int* out, int n) {
    const int t = threadIdx.x, i = blockIdx.x * n + t;
    const int shift = fault("load past the end") ? 2 * n : 0;
    int x = in[i + shift];
    if (fault("load from the output")) x += out[i];
    if (fault("store before the start")) out[i - 2 * n - 1] = 0;
    if (fault("wild store")) *reinterpret_cast<int*>(0x1000) = 0;
    if (fault("wild load")) x += *reinterpret_cast<volatile int*>(0x1000);
    if (fault("misaligned load")) x += *reinterpret_cast<const volatile int64_t*>(in + 1 + t / 2 * 2);
    out[fault("blocks share a word") && t == 0 ? 0 : i] = x;
    if (fault("block reads another's word") && t == 0) out[i] = out[0];
    if (fault("threads race") && t < 64) out[blockIdx.x * n] = x;
}

int recurse(int n) {
    volatile char frame[4096];
    frame[n % 4096] = n;
    return n ? recurse(n - 1) + frame[1] : 0;
}

__global__ void runaway() {
    if (fault("deep recursion")) recurse(1000);
    volatile int x = 0;
    while (fault("endless loop")) x = x + 1;
}

// ------------------------------------------------------------------------------------------------------ barriers

// Warp 0 fills, warp 1 reads; warps 2 and 3 only meet the others at the end.
__global__ void named_barriers(int* out) {
    int* s = reinterpret_cast<int*>(dev::dynamic_shared());
    const int t = threadIdx.x, warp = t / 32;
    if (warp == 0) {
        s[t] = t;
        if (!fault("no arrival")) dev::bar_arrive(1, 64);
    } else if (warp == 1) {
        if (!fault("no wait")) dev::bar_sync(fault("other barrier") ? 2 : 1, fault("other count") ? 96 : 64);
        out[t - 32] = s[t - 32];
    }
    if (!fault("a warp skips the last barrier") || warp != 3) __syncthreads();
}

// ------------------------------------------------------------------------------------------------------ cp.async

// Two stages of 512 bytes; n tiles are copied through them.
__global__ void copies(const int4* in, int4* out, int n) {
    const int t = threadIdx.x;
    auto* s = reinterpret_cast<int4*>(dev::dynamic_shared());
    auto load = [&](int i) {
        const uint32_t to = dev::shared_address(s + i % 2 * 32 + t);
        if (i < n) dev::cp_async_16(fault("misaligned copy") ? to + 8 : to, in + i * 32 + t, true);
        if (!fault("never committed")) dev::cp_async_commit();
    };
    load(0);
    for (int i = 0; i < n; ++i) {
        if (!fault("no second stage")) load(i + 1);
        if (fault("waits for one group less")) {
            dev::cp_async_wait<2>();
        } else {
            dev::cp_async_wait<1>();
        }
        if (!fault("no barrier after the wait")) __syncthreads();
        out[i * 32 + t] = s[i % 2 * 32 + (t + 1) % 32];
        if (!fault("no barrier before the next copy")) __syncthreads();
        if (fault("no second stage")) load(i + 1);
    }
    dev::cp_async_wait<0>();
}

// ----------------------------------------------------------------------------------------------------------- TMA

constexpr int kStages = 2, kRows = 16;
constexpr uint32_t kTileBytes = kRows * 64 * 2;

// Warp 0 loads tiles of 16 x 64 by TMA, warp 1 doubles them in place and warp 2 stores them by TMA.
__global__ void ring(const __grid_constant__ dev::TensorMap in, const __grid_constant__ dev::TensorMap out, int n) {
    const int t = threadIdx.x, warp = t / 32;
    const uint32_t tiles = dev::shared_address(dev::dynamic_shared());
    const uint32_t full = tiles + kStages * kTileBytes, doubled = full + 8 * kStages, empty = doubled + 8 * kStages;
    if (t == 0) {
        for (int s = 0; s < kStages; ++s) {
            dev::mbar_init(full + 8 * s, 1);
            dev::mbar_init(doubled + 8 * s, fault("count too low") ? 16 : 32);
            dev::mbar_init(empty + 8 * s, 1);
        }
        if (!fault("no fence after init")) dev::fence_mbar_init();
    }
    if (!fault("no barrier after init")) __syncthreads();
    for (int i = 0; i < n; ++i) {
        const int s = i % kStages;
        const uint32_t parity = i / kStages & 1, tile = tiles + s * kTileBytes;
        if (warp == 0 && t == 0) {
            if (!fault("does not wait for empty"))
                dev::mbar_wait(empty + 8 * s, fault("wrong parity of empty") ? parity : parity ^ 1);
            const uint32_t bytes = fault("expects too few bytes")    ? kTileBytes / 2
                                   : fault("expects too many bytes") ? 2 * kTileBytes
                                                                     : kTileBytes;
            if (fault("expects no bytes")) {
                dev::mbar_arrive(full + 8 * s);
            } else {
                dev::mbar_arrive_expect_tx(full + 8 * s, bytes);
            }
            dev::tma_load_2d(fault("misaligned tile") ? tile + 64 : tile, &in, full + 8 * s, 0, i * kRows);
        } else if (warp == 1) {
            if (!fault("does not wait for full"))
                dev::mbar_wait(full + 8 * s, fault("wrong parity of full") ? parity ^ 1 : parity);
            auto* p = reinterpret_cast<uint32_t*>(dev::dynamic_shared() + s * kTileBytes);
            for (uint32_t j = t % 32; j < kTileBytes / 4; j += 32) {
                float lo, hi;
                dev::unpack<bf16>(p[j], lo, hi);
                p[j] = dev::pack<bf16>(2 * lo, 2 * hi);
            }
            if (!fault("no proxy fence")) dev::fence_proxy_async();
            if (fault("one lane arrives for all") && t % 32) continue;
            if (fault("one lane arrives for all")) {
                for (int lane = 0; lane < 32; ++lane) dev::mbar_arrive(doubled + 8 * s);
            } else if (!fault("no arrival")) {
                dev::mbar_arrive(doubled + 8 * s);
            }
        } else if (warp == 2 && t == 64) {
            dev::mbar_wait(doubled + 8 * s, parity);
            dev::tma_store_2d(&out, tile, 0, i * kRows);
            if (!fault("store never committed")) dev::tma_store_commit();
            if (!fault("no wait for the store")) dev::tma_store_wait_read<0>();
            dev::mbar_arrive(empty + 8 * s);
        }
    }
    if (fault("reads an mbarrier") && t == 0)
        (void)*reinterpret_cast<volatile int*>(dev::dynamic_shared() + kStages * kTileBytes);
    if (t == 64 && !fault("no wait for the store")) dev::tma_store_wait<0>();
}

// --------------------------------------------------------------------------------------------------------- wgmma

// out (64, 64) = A (64, 32) B (64, 32)^T, twice added up; A from registers, B from shared memory by plain stores.
__global__ void product(const uint16_t* a, const uint16_t* b, float* out) {
    const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, column = 2 * (t % 4);
    auto* s = reinterpret_cast<uint32_t*>(dev::dynamic_shared());
    for (int i = t; i < 64 * 16; i += 128) {  // two k-slices of 64 rows of 32 bytes, unswizzled 8 x 16 byte cores
        const int n = i / 16, k = 2 * (i % 16);
        s[(k / 8 * 1024 + n / 8 * 128 + n % 8 * 16 + k % 8 * 2) / 4] = b[n * 32 + k] | uint32_t(b[n * 32 + k + 1])
                                                                                           << 16;
    }
    if (!fault("no proxy fence")) dev::fence_proxy_async();
    if (!fault("no barrier")) __syncthreads();
    float d[32];
    for (float& x : d) x = 0;
    uint32_t x[2][4];
    for (int k = 0; k < 2; ++k) {
        for (int i = 0; i < 4; ++i) {
            const uint16_t* p = a + (row + i % 2 * 8) * 32 + 16 * k + column + i / 2 * 8;
            x[k][i] = p[0] | uint32_t(p[1]) << 16;
        }
    }
    const uint32_t base = dev::shared_address(s);
    for (int twice = 0; twice < 2; ++twice) {
        if (!fault("no wgmma fence")) dev::wgmma_fence();
        if (fault("registers written after the fence")) d[0] += 1;
        for (int k = 0; k < 2; ++k) {
            const bool differs = fault("descriptors differ") && t == 5;
            const uint64_t desc = dev::wgmma_descriptor(base + 2048 * k + 128 * differs, 1024, 128, Swizzle::none);
            if (fault("operand past the end")) {
                dev::wgmma_rs<bf16>(d, x[k], dev::wgmma_descriptor(base + 2048 * (k + 1), 1024, 128, Swizzle::none),
                                    true);
            } else {
                dev::wgmma_rs<bf16>(d, x[k], desc, true);
            }
            dev::wgmma_commit();
        }
        if (fault("A register reused in flight")) x[1][2] = 0;
        if (fault("accumulator read in flight")) out[t] = d[3];
        if (fault("accumulator written in flight")) d[3] = 0;
        if (fault("operand overwritten in flight")) {
            __syncthreads();
            if (t == 7) s[9] = 0;
        }
        if (fault("half a warpgroup waits") && t < 64) continue;
        if (fault("waits for all but one group")) {
            dev::wgmma_wait<1>();
        } else {
            dev::wgmma_wait<0>();
        }
    }
    for (int i = 0; i < 32; ++i) out[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + column + i % 2] = d[i];
    dev::setmaxnreg_dec<24>();
    if (fault("odd register count")) dev::setmaxnreg_inc<100>();
}

CUtensorMap matrix_map(const void* base, uint64_t rows, CUtensorMapSwizzle swizzle) {
    CUtensorMap map;
    const cuuint64_t sizes[] = {64, rows}, strides[] = {128};
    const cuuint32_t box[] = {64, kRows}, ones[] = {1, 1};
    cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(base), sizes, strides, box,
                           ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return map;
}

}  // namespace

extern "C" {

void toy_exchange(const char* name, int* out) {
    set_fault(name);
    emu::launch(1, 128, 512, exchange, out, 128);
}

void toy_exchange_in_warp(const char* name, int* out) {
    set_fault(name);
    emu::launch(1, 64, 256, exchange_in_warp, out);
}

void toy_global_memory(const char* name, const int* in, int* out) {
    set_fault(name);
    emu::launch(2, 64, 0, global_memory, in, out, 64);
}

void toy_runaway(const char* name) {
    set_fault(name);
    emu::launch(1, 32, 0, runaway);
}

void toy_named_barriers(const char* name, int* out) {
    set_fault(name);
    emu::launch(1, 128, 128, named_barriers, out);
}

void toy_copies(const char* name, const int4* in, int4* out) {
    set_fault(name);
    emu::launch(1, 32, 1024, copies, in, out, 4);
}

// The last tile lies half outside the tensors.
void toy_ring(const char* name, const void* in, void* out) {
    set_fault(name);
    const CUtensorMap maps[] = {matrix_map(in, 5 * kRows - 8, CU_TENSOR_MAP_SWIZZLE_128B),
                                matrix_map(out, 5 * kRows - 8, CU_TENSOR_MAP_SWIZZLE_128B)};
    emu::launch(1, 96, kStages * kTileBytes + 48, ring, maps[0], maps[1], 5);
}

void toy_product(const char* name, const uint16_t* a, const uint16_t* b, float* out) {
    set_fault(name);
    emu::launch(1, 128, 4096, product, a, b, out);
}

void toy_too_much_shared_memory() { emu::launch(1, 32, 240 << 10, runaway); }
}
