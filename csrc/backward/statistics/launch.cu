#include "backward/launch.h"
#include "backward/statistics/kernel.h"

namespace statistics {

template <class Element, int kLanes>
static void launch_lanes(const RowStatisticsParams& params, cudaStream_t stream) {
    constexpr int kRows = kThreads / kLanes;
    rows<Element, kLanes><<<(params.rows + kRows - 1) / kRows * params.heads, kThreads, 0, stream>>>(params);
}

template <class Element>
static void launch_type(const RowStatisticsParams& params, cudaStream_t stream) {
    params.head_dim <= 64 ? launch_lanes<Element, 8>(params, stream) : launch_lanes<Element, 16>(params, stream);
}

}  // namespace statistics

void launch_row_statistics(const RowStatisticsParams& params, ElementType type, cudaStream_t stream) {
    type == ElementType::bf16 ? statistics::launch_type<dev::bf16>(params, stream)
                              : statistics::launch_type<dev::fp16>(params, stream);
    check(cudaGetLastError(), "launch of the row statistics");
}
