// One small kernel for each primitive of csrc/common/ptx_hopper.h; test_primitives.py states what each must return.
#include <type_traits>

#include "launch.h"

using dev::bf16;
using dev::fp16;
using dev::Major;
using dev::Swizzle;

// Warp 0 passes `rounds` values to warp 1 through one word, a full and an empty mbarrier; out (rounds).
__global__ void handshake(const int* in, int* out, int rounds) {
    auto* s = reinterpret_cast<volatile int*>(dev::dynamic_shared());
    const uint32_t full = dev::shared_address(dev::dynamic_shared()) + 8, empty = full + 8;
    const int t = threadIdx.x;
    if (t == 0) {
        dev::mbar_init(full, 1);
        dev::mbar_init(empty, 32);
        dev::fence_mbar_init();
    }
    __syncthreads();
    for (int i = 0; i < rounds; ++i) {
        if (t == 0) {
            dev::mbar_wait(empty, (i & 1) ^ 1);
            s[0] = in[i];
            dev::mbar_arrive(full);
        } else if (t >= 32) {
            dev::mbar_wait(full, i & 1);
            const int got = s[0];
            dev::mbar_arrive(empty);
            if (t == 32) out[i] = got;
        }
    }
}

// The bytes of a box, as they lie in shared memory after the load.
__global__ void box_load(const __grid_constant__ dev::TensorMap map, uint4* out, int rank, int4 at, int bytes) {
    const uint32_t tile = dev::shared_address(dev::dynamic_shared()), bar = tile + bytes;
    if (threadIdx.x == 0) {
        dev::tma_prefetch(&map);
        dev::mbar_init(bar, 1);
        dev::fence_mbar_init();
        dev::mbar_arrive_expect_tx(bar, bytes);
        if (rank == 2) dev::tma_load_2d(tile, &map, bar, at.x, at.y);
        if (rank == 3) dev::tma_load_3d(tile, &map, bar, at.x, at.y, at.z);
        if (rank == 4) dev::tma_load_4d(tile, &map, bar, at.x, at.y, at.z, at.w);
    }
    __syncthreads();
    dev::mbar_wait(bar, 0);
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x)
        out[i] = reinterpret_cast<uint4*>(dev::dynamic_shared())[i];
}

__global__ void box_store(const __grid_constant__ dev::TensorMap map, const uint4* in, int rank, int4 at, int bytes) {
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x)
        reinterpret_cast<uint4*>(dev::dynamic_shared())[i] = in[i];
    dev::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t tile = dev::shared_address(dev::dynamic_shared());
        if (rank == 2) dev::tma_store_2d(&map, tile, at.x, at.y);
        if (rank == 3) dev::tma_store_3d(&map, tile, at.x, at.y, at.z);
        if (rank == 4) dev::tma_store_4d(&map, tile, at.x, at.y, at.z, at.w);
        dev::tma_store_commit();
        dev::tma_store_wait_read<0>();
        dev::tma_store_wait<0>();
    }
}

// in (4, 32) registers -> out (2, 64) rows of 16 bytes: plain, transposed; lane l names row rows[l].
__global__ void matrix_store(const uint32_t* in, const int* rows, uint4* out) {
    auto* s = reinterpret_cast<uint4*>(dev::dynamic_shared());
    const int t = threadIdx.x;
    uint32_t r[4];
    for (int i = 0; i < 4; ++i) r[i] = in[i * 32 + t];
    dev::stmatrix_x4(dev::shared_address(s + rows[t]), r);
    dev::stmatrix_x4_trans(dev::shared_address(s + 32 + rows[t]), r);
    __syncwarp();
    for (int i = t; i < 64; i += 32) out[i] = s[i];
}

struct ProductParams {
    const uint4* shared;  // the image of shared memory
    const uint32_t* a;    // (4, 128): A in registers, or null
    const float* c;       // (64, N)
    float* out;           // (64, N)
    uint32_t shared_bytes, a_offset, b_offset, a_lead, a_stride, b_lead, b_stride;
    int swizzle, accumulate;
};

// Where register i of thread t stands in an accumulator.
DEVICE int row_of(int t, int i) { return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8; }
DEVICE int column_of(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

template <class Element, int N, bool kInRegisters, Major kMajorA, Major kMajorB>
__global__ void __launch_bounds__(128) product(const __grid_constant__ ProductParams p) {
    const int t = threadIdx.x;
    for (uint32_t i = t; i < p.shared_bytes / 16; i += 128)
        reinterpret_cast<uint4*>(dev::dynamic_shared())[i] = p.shared[i];
    dev::fence_proxy_async();
    __syncthreads();
    float d[N / 2];
    for (int i = 0; i < N / 2; ++i) d[i] = p.c[row_of(t, i) * N + column_of(t, i)];
    const uint32_t base = dev::shared_address(dev::dynamic_shared());
    const Swizzle swizzle = Swizzle(p.swizzle);
    const uint64_t b = dev::wgmma_descriptor(base + p.b_offset, p.b_lead, p.b_stride, swizzle);
    uint32_t a[4] = {};
    if constexpr (kInRegisters) {
        for (int i = 0; i < 4; ++i) a[i] = p.a[i * 128 + t];
    }
    dev::wgmma_hold(d);
    dev::wgmma_hold(a);
    dev::wgmma_fence();
    if constexpr (kInRegisters) {
        dev::wgmma_rs<Element, kMajorB>(d, a, b, p.accumulate != 0);
    } else {
        const uint64_t desc_a = dev::wgmma_descriptor(base + p.a_offset, p.a_lead, p.a_stride, swizzle);
        dev::wgmma_ss<Element, kMajorA, kMajorB>(d, desc_a, b, p.accumulate != 0);
    }
    dev::wgmma_commit();
    dev::wgmma_wait<0>();
    dev::wgmma_hold(d);
    for (int i = 0; i < N / 2; ++i) p.out[row_of(t, i) * N + column_of(t, i)] = d[i];
}

// Two consumer warpgroups take registers that a producer gave up: 168 per thread at the start.
__global__ void __launch_bounds__(384, 1) registers(int* out) {
    if (threadIdx.x < 128) {
        dev::setmaxnreg_dec<24>();
    } else {
        dev::setmaxnreg_inc<240>();
    }
    out[threadIdx.x] = threadIdx.x;
}

// What the conformance test multiplies: every N for both sources of A; every layout and type for N = 64.
template <class Visit>
int with_product(int n, bool in_registers, bool is_bf16, bool a_is_mn, bool b_is_mn, Visit visit) {
    constexpr Major K = Major::K, MN = Major::MN;
    if (n == 64) {
        const int which = in_registers ? 4 + b_is_mn : 2 * a_is_mn + b_is_mn;
        switch (is_bf16 ? which : 6 + which) {
            case 0:
                return visit(product<bf16, 64, false, K, K>);
            case 1:
                return visit(product<bf16, 64, false, K, MN>);
            case 2:
                return visit(product<bf16, 64, false, MN, K>);
            case 3:
                return visit(product<bf16, 64, false, MN, MN>);
            case 4:
                return visit(product<bf16, 64, true, K, K>);
            case 5:
                return visit(product<bf16, 64, true, K, MN>);
            case 6:
                return visit(product<fp16, 64, false, K, K>);
            case 7:
                return visit(product<fp16, 64, false, K, MN>);
            case 8:
                return visit(product<fp16, 64, false, MN, K>);
            case 9:
                return visit(product<fp16, 64, false, MN, MN>);
            case 10:
                return visit(product<fp16, 64, true, K, K>);
            case 11:
                return visit(product<fp16, 64, true, K, MN>);
        }
    }
    if (!is_bf16 || a_is_mn || b_is_mn) return -1;
    switch (in_registers ? n + 1 : n) {
        case 32:
            return visit(product<bf16, 32, false, K, K>);
        case 33:
            return visit(product<bf16, 32, true, K, K>);
        case 96:
            return visit(product<bf16, 96, false, K, K>);
        case 97:
            return visit(product<bf16, 96, true, K, K>);
        case 128:
            return visit(product<bf16, 128, false, K, K>);
        case 129:
            return visit(product<bf16, 128, true, K, K>);
        case 160:
            return visit(product<bf16, 160, false, K, K>);
        case 161:
            return visit(product<bf16, 160, true, K, K>);
        case 192:
            return visit(product<bf16, 192, false, K, K>);
        case 193:
            return visit(product<bf16, 192, true, K, K>);
        case 224:
            return visit(product<bf16, 224, false, K, K>);
        case 225:
            return visit(product<bf16, 224, true, K, K>);
        case 256:
            return visit(product<bf16, 256, false, K, K>);
        case 257:
            return visit(product<bf16, 256, true, K, K>);
    }
    return -1;
}

// sizes, strides (bytes, from the second dimension on) and box as the driver takes them.
CUtensorMap tensor_map(void* base, int rank, const int64_t* sizes, const int64_t* strides, const int64_t* box,
                       int swizzle, CUresult& result) {
    CUtensorMap map;
    cuuint64_t s[4], st[3];
    cuuint32_t b[4], ones[4] = {1, 1, 1, 1};
    for (int d = 0; d < rank; ++d) s[d] = sizes[d], b[d] = cuuint32_t(box[d]);
    for (int d = 0; d + 1 < rank; ++d) st[d] = strides[d];
    result = encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, base, s, st, b, ones,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapSwizzle(swizzle),
                            CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return map;
}

extern "C" {

int run_handshake(const int* in, int* out, int64_t rounds) { return launch(64, 64, handshake, in, out, int(rounds)); }

// geometry (4, 4): sizes, strides, box, coordinates, in host memory.
int run_box_load(void* in, void* out, int64_t rank, const int64_t* geometry, int64_t swizzle, int64_t bytes) {
    CUresult result;
    const CUtensorMap map = tensor_map(in, rank, geometry, geometry + 4, geometry + 8, swizzle, result);
    if (result != CUDA_SUCCESS) return result;
    const int64_t* at = geometry + 12;
    return launch(32, bytes + 16, box_load, map, static_cast<uint4*>(out), int(rank),
                  make_int4(int(at[0]), int(at[1]), int(at[2]), int(at[3])), int(bytes));
}

int run_box_store(void* out, const void* in, int64_t rank, const int64_t* geometry, int64_t swizzle, int64_t bytes) {
    CUresult result;
    const CUtensorMap map = tensor_map(out, rank, geometry, geometry + 4, geometry + 8, swizzle, result);
    if (result != CUDA_SUCCESS) return result;
    const int64_t* at = geometry + 12;
    return launch(32, bytes, box_store, map, static_cast<const uint4*>(in), int(rank),
                  make_int4(int(at[0]), int(at[1]), int(at[2]), int(at[3])), int(bytes));
}

int run_matrix_store(const uint32_t* in, const int* rows, uint4* out) {
    return launch(32, 1024, matrix_store, in, rows, out);
}

int run_registers(int* out) { return launch(384, 0, registers, out); }

// layout: a_offset, b_offset, a_lead, a_stride, b_lead, b_stride, a_is_mn, b_is_mn, in host memory. -1: no such kernel.
int run_wgmma(const void* shared, const uint32_t* a, const float* c, float* out, int64_t shared_bytes, int64_t n,
              int64_t is_bf16, int64_t swizzle, int64_t accumulate, const int64_t* layout) {
    ProductParams p{static_cast<const uint4*>(shared), a, c, out, uint32_t(shared_bytes)};
    uint32_t* const fields[] = {&p.a_offset, &p.b_offset, &p.a_lead, &p.a_stride, &p.b_lead, &p.b_stride};
    for (int i = 0; i < 6; ++i) *fields[i] = uint32_t(layout[i]);
    p.swizzle = int(swizzle), p.accumulate = int(accumulate);
    return with_product(int(n), a != nullptr, is_bf16, layout[6], layout[7],
                        [&](auto kernel) { return launch(128, shared_bytes, kernel, p); });
}
}
