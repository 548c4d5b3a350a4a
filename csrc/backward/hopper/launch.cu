#include "backward/hopper/kernel.h"
#include "backward/launch.h"

namespace hopper {
namespace {

template <class Visit>
auto with_gradients(int head_dim, ElementType type, Visit visit) {
    return with_config<GradientPairOf, GradientWidths>(head_dim, type, visit);
}

GradientTile tile(Owner owner, int head_dim) {
    return with_gradients(head_dim, ElementType::bf16, [owner]<class P>(P) {
        using Queries = typename P::Queries;
        using Keys = typename P::Keys;
        return owner == Owner::keys
                   ? GradientTile{.owned = Keys::kOwned, .walked = Keys::kWalked, .blocks_per_sm = 1}
                   : GradientTile{.owned = Queries::kOwned, .walked = Queries::kWalked, .blocks_per_sm = 1};
    });
}

void prepare(int head_dim, ElementType type) {
    with_gradients(head_dim, type,
                   []<class P>(P) { allow_shared(gradients<P>, P::kSharedBytes, "the Hopper gradient kernel"); });
}

void launch(const GradientParams& params, ElementType type, cudaStream_t stream) {
    if (params.shares.blocks == 0) return;  // no rows at all
    with_gradients(params.head_dim, type, [&]<class P>(P) {
        gradients<P><<<params.shares.blocks, P::kThreads, P::kSharedBytes, stream>>>(params);
    });
    check(cudaGetLastError(), "launch of the Hopper gradient kernel");
}

}  // namespace

const GradientLauncher gradient_launcher = {.is_persistent = true, .tile = tile, .prepare = prepare, .launch = launch};

}  // namespace hopper
