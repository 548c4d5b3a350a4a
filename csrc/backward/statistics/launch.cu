#include "backward/launch.h"
#include "backward/statistics/kernel.h"
#include "common/visit.h"

namespace statistics {

template <class Element, int kLanes>
static void launch_lanes(const RowStatisticsParams& params, cudaStream_t stream) {
    constexpr int kRows = kThreads / kLanes;
    rows<Element, kLanes><<<(params.rows + kRows - 1) / kRows * params.heads, kThreads, 0, stream>>>(params);
}

}  // namespace statistics

void launch_row_statistics(const RowStatisticsParams& params, ElementType type, cudaStream_t stream) {
    with_element(type, [&]<class Element>(Element) {
        params.head_dim <= 64 ? statistics::launch_lanes<Element, 8>(params, stream)
                              : statistics::launch_lanes<Element, 16>(params, stream);
    });
    check(cudaGetLastError(), "launch of the row statistics");
}
