// Matrix products for the emulator by CUTLASS's own kernels of specialised warps, as its builders choose them:
// cute_runs.py compiles and runs them.
#include "cute_launch.h"

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

using namespace cute;

// LayoutA, LayoutB: of A (M, K) and B (K, N), by rows or by columns.
template <class Element, class LayoutA, class LayoutB, class Tile, class Schedule, class EpilogueSchedule>
struct Kernel {
    using RowMajor = cutlass::layout::RowMajor;
    using Cluster = Shape<_1, _1, _1>;
    static constexpr int kAligned = 16 / sizeof(Element);
    using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
        cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, kAligned, Element, RowMajor,
        kAligned, EpilogueSchedule>::CollectiveOp;
    using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, LayoutA, kAligned, Element, LayoutB, kAligned,
        float, Tile, Cluster, cutlass::gemm::collective::StageCount<3>, Schedule>::CollectiveOp;
    using Type = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
};

// Contiguous along the last mode, or along the first.
template <class Stride>
Stride strides(int rows, int columns) {
    Stride found{};
    if constexpr (is_static<decltype(get<1>(Stride{}))>::value) {
        get<0>(found) = columns;
    } else {
        get<1>(found) = rows;
    }
    return found;
}

template <class K>
Launch launch_of(const Problem& p) {
    using Element = typename K::ElementA;
    auto* a = static_cast<const Element*>(p.a);
    auto* b = static_cast<const Element*>(p.b);
    auto* out = static_cast<Element*>(p.out);
    typename K::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                    {p.m, p.n, p.k, 1},
                                    {a, strides<typename K::StrideA>(p.m, p.k), b,
                                     strides<typename K::StrideB>(p.n, p.k)},
                                    {{1.f, 0.f}, nullptr, {}, out, strides<typename K::StrideD>(p.m, p.n)},
                                    {.device_id = 0, .sm_count = 2, .max_active_clusters = 2}};
    auto* params = new typename K::Params(K::to_underlying_arguments(arguments, nullptr));
    const dim3 grid = K::get_grid_shape(*params), block = K::get_block_shape();
    return {params, {int(grid.x), int(grid.y), int(grid.z)}, int(block.x), K::SharedStorageSize};
}

template <class K>
__device__ void multiply(const typename K::Params& params) {
#ifdef __CUDA_ARCH__  // the host's compiler need not see how
    extern __shared__ __align__(1024) char dynamic_shared_bytes[];
    K()(params, dynamic_shared_bytes);
#endif
}

#define KERNEL(name, ...)                                                        \
    using name = Kernel<__VA_ARGS__>::Type;                                      \
    extern "C" __global__ void __launch_bounds__(name::MaxThreadsPerBlock)       \
        name##_kernel(const __grid_constant__ name::Params params) {             \
        multiply<name>(params);                                                  \
    }                                                                            \
    extern "C" Launch name##_launch(const Problem* p) { return launch_of<name>(*p); }

using Rows = cutlass::layout::RowMajor;
using Columns = cutlass::layout::ColumnMajor;
using namespace cutlass::gemm;
using namespace cutlass::epilogue;
KERNEL(cooperative, cutlass::bfloat16_t, Rows, Columns, Shape<_128, _64, _64>, KernelTmaWarpSpecializedCooperative,
       TmaWarpSpecializedCooperative)
KERNEL(pingpong, cutlass::half_t, Columns, Rows, Shape<_64, _64, _64>, KernelTmaWarpSpecializedPingpong,
       TmaWarpSpecialized)
