#include "backward/ampere/kernel.h"
#include "backward/launch.h"
#include "backward/visit.h"

namespace ampere {
namespace {

template <class Visit>
auto with_gradients(Owner owner, int head_dim, ElementType type, Visit visit) {
    return backward::with_config<GradientConfigOf, GradientWidths>(owner, head_dim, type, visit);
}

GradientTile tile(Owner owner, int head_dim) {
    return with_gradients(owner, head_dim, ElementType::bf16, []<class C>(C) {
        return GradientTile{.owned = C::kOwned, .walked = C::kWalked, .blocks_per_sm = C::kBlocksPerSm};
    });
}

void prepare(int head_dim, ElementType type) {
    for (Owner owner : {Owner::queries, Owner::keys}) {
        with_gradients(owner, head_dim, type,
                       []<class C>(C) { allow_shared(gradients<C>, C::kSharedBytes, "an Ampere gradient kernel"); });
    }
}

// A block per item.
void launch(const GradientParams& params, ElementType type, cudaStream_t stream) {
    for (Owner owner : {Owner::queries, Owner::keys}) {
        const int blocks = backward::items(owner, params);
        if (blocks == 0) continue;  // no rows on this side
        with_gradients(owner, params.head_dim, type,
                       [&]<class C>(C) { gradients<C><<<blocks, C::kThreads, C::kSharedBytes, stream>>>(params); });
        check(cudaGetLastError(), "launch of an Ampere gradient kernel");
    }
}

}  // namespace

const GradientLauncher gradient_launcher = {.is_persistent = false, .tile = tile, .prepare = prepare, .launch = launch};

}  // namespace ampere
