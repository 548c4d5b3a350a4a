// One small kernel for each primitive of csrc/common/ptx.h; test_primitives.py states what each must return.
#include "launch.h"

using dev::bf16;
using dev::fp16;

// out (3, 32): of lane's neighbour in a butterfly, of a lane, of the same for int.
__global__ void shuffles(const float* in, float* out, int mask, int lane) {
    const int t = threadIdx.x;
    out[t] = dev::shfl_xor(in[t], mask);
    out[32 + t] = dev::shfl_idx(in[t], lane);
    out[64 + t] = float(dev::shfl_xor(t, mask));
}

// Even warps fill a word for the next warp, which alone waits; then the block's barrier.
__global__ void barriers(int* out) {
    int* s = reinterpret_cast<int*>(dev::dynamic_shared());
    const int t = threadIdx.x, pair = t / 64;
    if (t / 32 % 2 == 0) {
        s[t] = t;
        dev::bar_arrive(1 + pair, 64);
    } else {
        dev::bar_sync(1 + pair, 64);
        s[t] = s[t - 32] + 1000;
    }
    __syncthreads();
    out[t] = s[(t + 64) % blockDim.x];
    __syncwarp();
}

// shared: 1024 bytes to read, rows: the row of 16 bytes that each lane names. out (2, 4, 32): plain, transposed.
__global__ void matrices(const uint4* shared, const int* rows, uint32_t* out) {
    auto* s = reinterpret_cast<uint4*>(dev::dynamic_shared());
    const int t = threadIdx.x;
    for (int i = t; i < 64; i += 32) s[i] = shared[i];
    __syncwarp();
    const uint32_t address = dev::shared_address(s + rows[t]);
    uint32_t plain[4], transposed[4];
    dev::ldmatrix_x4(plain, address);
    dev::ldmatrix_x4_trans(transposed, address);
    for (int i = 0; i < 4; ++i) {
        out[i * 32 + t] = plain[i];
        out[128 + i * 32 + t] = transposed[i];
    }
}

// out (16, 8) = c + a (16, 16) b (16, 8); a and c by rows, b by columns.
template <class Element>
__global__ void product(const uint16_t* a, const uint16_t* b, const float* c, float* out) {
    const int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
    auto two = [](const uint16_t* p) { return p[0] | uint32_t(p[1]) << 16; };
    uint32_t x[4];
    float d[4];
    for (int i = 0; i < 4; ++i) {
        x[i] = two(a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8);
        d[i] = c[(group + i / 2 * 8) * 8 + pair + i % 2];
    }
    dev::mma_m16n8k16<Element>(d, x, two(b + group * 16 + pair), two(b + group * 16 + pair + 8));
    for (int i = 0; i < 4; ++i) out[(group + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}

// Two groups of copies of 16 bytes for each thread; where valid is 0, zeros.
__global__ void copies(const uint4* in, const int* valid, uint4* out) {
    auto* s = reinterpret_cast<uint4*>(dev::dynamic_shared());
    const int t = threadIdx.x, n = blockDim.x;
    for (int group = 0; group < 2; ++group) {
        const int i = group * n + t;
        dev::cp_async_16(dev::shared_address(s + i), in + i, valid[i] != 0);
        dev::cp_async_commit();
    }
    dev::cp_async_wait<1>();
    __syncthreads();
    out[t] = s[(t + 1) % n];
    dev::cp_async_wait<0>();
    __syncthreads();
    out[n + t] = s[n + (t + 1) % n];
}

// The same with 8 bytes at a time, in one group.
__global__ void small_copies(const uint2* in, const int* valid, uint2* out) {
    auto* s = reinterpret_cast<uint2*>(dev::dynamic_shared());
    const int t = threadIdx.x, n = blockDim.x;
    dev::cp_async_8(dev::shared_address(s + t), in + t, valid[t] != 0);
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    __syncthreads();
    out[t] = s[(t + 1) % n];
}

template <class Element>
__global__ void conversions(const float* in, uint32_t* packed, float* unpacked) {
    const int t = threadIdx.x;
    const uint32_t pair = dev::pack<Element>(in[2 * t], in[2 * t + 1]);
    packed[t] = pair;
    dev::unpack<Element>(pair, unpacked[2 * t], unpacked[2 * t + 1]);
}

// out (3, n): 2^x, log2 x, -inf.
__global__ void functions(const float* in, float* out) {
    const int t = threadIdx.x, n = blockDim.x;
    out[t] = dev::ex2(in[t]);
    out[n + t] = dev::lg2(in[t]);
    out[2 * n + t] = dev::neg_inf();
}

extern "C" {

int run_shuffles(const float* in, float* out, int64_t mask, int64_t lane) {
    return launch(32, 0, shuffles, in, out, int(mask), int(lane));
}
int run_barriers(int* out) { return launch(128, 512, barriers, out); }
int run_matrices(const uint4* shared, const int* rows, uint32_t* out) {
    return launch(32, 1024, matrices, shared, rows, out);
}
int run_product(const uint16_t* a, const uint16_t* b, const float* c, float* out, int64_t is_bf16) {
    return launch(32, 0, is_bf16 ? product<bf16> : product<fp16>, a, b, c, out);
}
int run_copies(const uint4* in, const int* valid, uint4* out) { return launch(64, 2048, copies, in, valid, out); }
int run_small_copies(const uint2* in, const int* valid, uint2* out) {
    return launch(64, 512, small_copies, in, valid, out);
}
int run_conversions(const float* in, uint32_t* packed, float* unpacked, int64_t pairs, int64_t is_bf16) {
    return launch(int(pairs), 0, is_bf16 ? conversions<bf16> : conversions<fp16>, in, packed, unpacked);
}
int run_functions(const float* in, float* out, int64_t n) { return launch(int(n), 0, functions, in, out); }
}
