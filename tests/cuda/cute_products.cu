// Matrix products for the emulator, written in CuTe's layouts, copies and atoms: cute_runs.py compiles and runs them.
#include "cute_launch.h"

#include <cute/tensor.hpp>
#include <cutlass/arch/barrier.h>

using namespace cute;
using GMMA::Major;

template <Major kMajor>
auto strides(int rows, int columns) {  // of the matrix (rows, K), contiguous along K or along its rows
    if constexpr (kMajor == Major::K) {
        return make_stride(int64_t(columns), _1{});
    } else {
        return make_stride(_1{}, int64_t(rows));
    }
}

template <class Element, class Layout>
auto global(void* p, Layout layout) {
    return make_tensor(make_gmem_ptr(static_cast<Element*>(p)), layout);
}

// kAFromRegisters: A comes there by ldmatrix. The atoms say how shared memory is swizzled.
template <class Element_, class Tile, Major kMajorA_, template <class> class AtomA, Major kMajorB_,
          template <class> class AtomB, bool kAFromRegisters_ = false>
struct Matmul {
    using Element = Element_;
    static constexpr Major kMajorA = kMajorA_, kMajorB = kMajorB_;
    static constexpr bool kAFromRegisters = kAFromRegisters_;
    static constexpr int kStages = 2, kConsumers = 128, kThreads = kConsumers + 32;
    using M = decltype(get<0>(Tile{}));
    using N = decltype(get<1>(Tile{}));
    using K = decltype(get<2>(Tile{}));
    using LayoutA = decltype(tile_to_shape(AtomA<Element>{}, Shape<M, K, Int<kStages>>{}));
    using LayoutB = decltype(tile_to_shape(AtomB<Element>{}, Shape<N, K, Int<kStages>>{}));
    using LayoutOut = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<Element>{}, Shape<M, N>{}));

    static constexpr auto multiplication() {
        using Mma = Shape<_64, N, K>;
        if constexpr (kAFromRegisters) {
            return make_tiled_mma(GMMA::rs_op_selector<Element, Element, float, Mma, kMajorA, kMajorB>());
        } else {
            return make_tiled_mma(GMMA::ss_op_selector<Element, Element, float, Mma, kMajorA, kMajorB>());
        }
    }
    template <class LayoutInShared = decltype(LayoutA{}(_, _, 0))>
    static auto load_a(const Problem& p, LayoutInShared layout = {}) {
        auto a = global<Element>(p.a, make_layout(make_shape(p.m, p.k), strides<kMajorA>(p.m, p.k)));
        return make_tma_atom(SM90_TMA_LOAD{}, a, layout, Shape<M, K>{});
    }
    static auto load_b(const Problem& p) {
        auto b = global<Element>(p.b, make_layout(make_shape(p.n, p.k), strides<kMajorB>(p.n, p.k)));
        return make_tma_atom(SM90_TMA_LOAD{}, b, LayoutB{}(_, _, 0), Shape<N, K>{});
    }
    static auto store_out(const Problem& p) {
        auto out = global<Element>(p.out, make_layout(make_shape(p.m, p.n), strides<Major::K>(p.m, p.n)));
        return make_tma_atom(SM90_TMA_STORE{}, out, LayoutOut{}, Shape<M, N>{});
    }
    struct Params {
        decltype(load_a({})) a;
        decltype(load_b({})) b;
        decltype(store_out({})) out;
        int m, n, k;
    };
    struct Shared {
        alignas(1024) Element a[cosize_v<LayoutA>];
        alignas(1024) Element b[cosize_v<LayoutB>];
        alignas(1024) Element out[cosize_v<LayoutOut>];
        cutlass::arch::ClusterTransactionBarrier full[kStages];
        cutlass::arch::ClusterBarrier empty[kStages];
    };
};

// One warp loads, a warpgroup multiplies, through a ring of stages. The host's compiler need not see how.
template <class C>
__global__ void __launch_bounds__(C::kThreads) matmul(const __grid_constant__ typename C::Params params) {
#ifdef __CUDA_ARCH__
    using Element = typename C::Element;
    using M = typename C::M;
    using N = typename C::N;
    using K = typename C::K;
    extern __shared__ __align__(1024) uint8_t dynamic_shared_bytes[];
    auto& shared = *reinterpret_cast<typename C::Shared*>(dynamic_shared_bytes);
    auto sa = make_tensor(make_smem_ptr(shared.a), typename C::LayoutA{});
    auto sb = make_tensor(make_smem_ptr(shared.b), typename C::LayoutB{});
    auto sout = make_tensor(make_smem_ptr(shared.out), typename C::LayoutOut{});
    const int steps = ceil_div(params.k, K{});

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < C::kStages; ++stage) {
            shared.full[stage].init(1);
            shared.empty[stage].init(C::kConsumers);
        }
        cutlass::arch::fence_barrier_init();
    }
    __syncthreads();

    if (threadIdx.x >= C::kConsumers) {
        if (!elect_one_sync()) return;
        auto ga = local_tile(params.a.get_tma_tensor(make_shape(params.m, params.k)), Shape<M, K>{},
                             make_coord(blockIdx.x, _));
        auto gb = local_tile(params.b.get_tma_tensor(make_shape(params.n, params.k)), Shape<N, K>{},
                             make_coord(blockIdx.y, _));
        auto [from_a, to_a] = tma_partition(params.a, group_modes<0, 2>(sa), group_modes<0, 2>(ga));
        auto [from_b, to_b] = tma_partition(params.b, group_modes<0, 2>(sb), group_modes<0, 2>(gb));
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const int stage = step % C::kStages;
            shared.empty[stage].wait(step / C::kStages % 2 ^ 1);
            auto& full = shared.full[stage];
            full.arrive_and_expect_tx(sizeof(Element) * (size(M{}) + size(N{})) * size(K{}));
            copy(params.a.with(reinterpret_cast<uint64_t&>(full)), from_a(_, step), to_a(_, stage));
            copy(params.b.with(reinterpret_cast<uint64_t&>(full)), from_b(_, step), to_b(_, stage));
        }
        return;
    }

    auto mma = C::multiplication();
    auto mine = mma.get_slice(threadIdx.x);
    auto sums = partition_fragment_C(mma, Shape<M, N>{});
    clear(sums);
    auto b = mine.partition_fragment_B(sb);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const int stage = step % C::kStages;
        shared.full[stage].wait(step / C::kStages % 2);
        if constexpr (C::kAFromRegisters) {
            auto load = make_tiled_copy_A(Copy_Atom<SM75_U32x4_LDSM_N, Element>{}, mma).get_slice(threadIdx.x);
            auto a = mine.partition_fragment_A(sa(_, _, 0));
            copy(Copy_Atom<SM75_U32x4_LDSM_N, Element>{}, load.partition_S(sa)(_, _, _, stage), load.retile_D(a));
            warpgroup_fence_operand(sums);
            warpgroup_fence_operand(a);
            warpgroup_arrive();
            gemm(mma, a, b(_, _, _, stage), sums);
            warpgroup_commit_batch();
            warpgroup_wait<0>();
            warpgroup_fence_operand(a);
        } else {
            auto a = mine.partition_fragment_A(sa);
            warpgroup_fence_operand(sums);
            warpgroup_arrive();
            gemm(mma, a(_, _, _, stage), b(_, _, _, stage), sums);
            warpgroup_commit_batch();
            warpgroup_wait<0>();
        }
        warpgroup_fence_operand(sums);
        shared.empty[stage].arrive();
    }

    auto rounded = make_tensor<Element>(shape(sums));
    for (int i = 0; i < size(sums); ++i) rounded(i) = Element(sums(i));
    using Store = Copy_Atom<SM90_U32x4_STSM_N, Element>;
    auto stored = make_tiled_copy_C(Store{}, mma).get_slice(threadIdx.x);
    copy(Store{}, stored.retile_S(rounded), stored.partition_D(sout));
    tma_store_fence();
    cutlass::arch::NamedBarrier::sync(C::kConsumers, 1);
    if (threadIdx.x == 0) {
        auto gout = local_tile(params.out.get_tma_tensor(make_shape(params.m, params.n)), Shape<M, N>{},
                               make_coord(blockIdx.x, blockIdx.y));
        auto [to, from] = tma_partition(params.out, group_modes<0, 2>(sout), group_modes<0, 2>(gout));
        copy(params.out, from, to);
        tma_store_arrive();
        tma_store_wait<0>();
    }
#endif
}

template <class C>
Launch launch_of(const Problem& p) {
    auto* params = new typename C::Params{C::load_a(p), C::load_b(p), C::store_out(p), p.m, p.n, p.k};
    if (p.a_without_swizzle) {
        auto plain = C::load_a(p, get_nonswizzle_portion(typename C::LayoutA{}(_, _, 0)));
        params->a.tma_desc_ = plain.tma_desc_;
    }
    const int rows = ceil_div(p.m, int(typename C::M{})), columns = ceil_div(p.n, int(typename C::N{}));
    return {params, {rows, columns, 1}, C::kThreads, sizeof(typename C::Shared)};
}

#define MATMUL(name, ...)                                                         \
    struct name : Matmul<__VA_ARGS__> {};                                         \
    template __global__ void matmul<name>(const __grid_constant__ name::Params); \
    extern "C" Launch name##_launch(const Problem* p) { return launch_of<name>(*p); }

using cutlass::bfloat16_t, cutlass::half_t;
using namespace cute::GMMA;
MATMUL(sw128_kn, bfloat16_t, Shape<_64, _128, _64>, Major::K, Layout_K_SW128_Atom, Major::MN, Layout_MN_SW128_Atom)
MATMUL(sw128_mk, half_t, Shape<_128, _64, _64>, Major::MN, Layout_MN_SW128_Atom, Major::K, Layout_K_SW128_Atom)
MATMUL(sw64_mk, bfloat16_t, Shape<_64, _64, _32>, Major::MN, Layout_MN_SW64_Atom, Major::K, Layout_K_SW64_Atom)
MATMUL(sw32_kn, half_t, Shape<_64, _64, _32>, Major::K, Layout_K_SW32_Atom, Major::MN, Layout_MN_SW32_Atom)
MATMUL(plain_kk, bfloat16_t, Shape<_64, _64, _32>, Major::K, Layout_K_INTER_Atom, Major::K, Layout_K_INTER_Atom)
MATMUL(plain_mn, half_t, Shape<_64, _64, _32>, Major::MN, Layout_MN_INTER_Atom, Major::MN, Layout_MN_INTER_Atom)
MATMUL(registers_kk, half_t, Shape<_128, _64, _64>, Major::K, Layout_K_SW64_Atom, Major::K, Layout_K_SW32_Atom, true)
