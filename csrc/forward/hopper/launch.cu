#include "forward/hopper/arguments.h"
#include "forward/hopper/kernel.h"
#include "forward/hopper/launch.h"

namespace hopper {
namespace {

// From the driver that is loaded already, so that nothing links to libcuda.
EncodeTiled driver_encode_tiled() {
    static const EncodeTiled encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        constexpr int kSince = 12000;  // CUDA 12.0
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince, cudaEnableDefault, &found),
              "looking up cuTensorMapEncodeTiled");
        if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("this driver has no cuTensorMapEncodeTiled");
        return reinterpret_cast<EncodeTiled>(function);
    }();
    return encode;
}

}  // namespace

ForwardTile forward_tile(int head_dim) {
    return with_config<ForwardConfigOf, ForwardWidths>(head_dim, ElementType::bf16, []<class C>(C) {
        return ForwardTile{.block_q = C::kBlockQ, .block_k = C::kBlockK, .blocks_per_sm = 1};
    });
}

void prepare_forward(int head_dim, ElementType type) {
    with_config<ForwardConfigOf, ForwardWidths>(
        head_dim, type, []<class C>(C) { allow_shared(forward<C>, Shared<C>::kBytes, "the Hopper forward kernel"); });
}

void launch_forward(const ForwardParams& params, const RowCounts& rows, const Shares& shares, ElementType type,
                    cudaStream_t stream) {
    with_config<ForwardConfigOf, ForwardWidths>(params.head_dim, type, [&]<class C>(C) {
        forward<C><<<shares.blocks, C::kThreads, Shared<C>::kBytes, stream>>>(
            arguments<C>(driver_encode_tiled(), params, rows, shares));
    });
    check(cudaGetLastError(), "launch of the Hopper forward kernel");
}

}  // namespace hopper
