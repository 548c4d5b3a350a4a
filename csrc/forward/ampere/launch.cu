#include "forward/ampere/kernel.h"
#include "forward/ampere/launch.h"

namespace ampere {

ForwardTile forward_tile(int head_dim) {
    return with_config<ForwardConfigOf, ForwardWidths>(head_dim, ElementType::bf16, []<class C>(C) {
        return ForwardTile{.block_q = C::kBlockQ, .block_k = C::kBlockK, .blocks_per_sm = C::kBlocksPerSm};
    });
}

void prepare_forward(int head_dim, ElementType type) {
    with_config<ForwardConfigOf, ForwardWidths>(
        head_dim, type, []<class C>(C) { allow_shared(forward<C>, C::kSharedBytes, "the Ampere forward kernel"); });
}

void launch_forward(const ForwardParams& params, ElementType type, cudaStream_t stream) {
    with_config<ForwardConfigOf, ForwardWidths>(params.head_dim, type, [&]<class C>(C) {
        forward<C><<<params.num_tiles * params.heads, C::kThreads, C::kSharedBytes, stream>>>(params);
    });
    check(cudaGetLastError(), "launch of the Ampere forward kernel");
}

}  // namespace ampere
