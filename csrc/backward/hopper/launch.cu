#include "backward/hopper/kernel.h"
#include "backward/launch.h"

namespace hopper {
namespace {

// Calls visit with the configuration for a head_dim.
template <class Element, Owner kOwner, class Visit>
auto with_width(int head_dim, Visit visit) {
    if (head_dim == 64) return visit(GradientConfigOf<Element, 64, kOwner>{});
    if (head_dim == 128) return visit(GradientConfigOf<Element, 128, kOwner>{});
    throw std::invalid_argument("head_dim must be 64 or 128, got " + std::to_string(head_dim));
}

template <Owner kOwner, class Visit>
auto with_type(int head_dim, ElementType type, Visit visit) {
    return type == ElementType::bf16 ? with_width<dev::bf16, kOwner>(head_dim, visit)
                                     : with_width<dev::fp16, kOwner>(head_dim, visit);
}

template <class Visit>
auto with_config(Owner owner, int head_dim, ElementType type, Visit visit) {
    return owner == Owner::keys ? with_type<Owner::keys>(head_dim, type, visit)
                                : with_type<Owner::queries>(head_dim, type, visit);
}

}  // namespace

GradientTile gradient_tile(Owner owner, int head_dim) {
    return with_config(owner, head_dim, ElementType::bf16,
                       []<class C>(C) { return GradientTile{C::kOwned, C::kWalked, 1}; });
}

void prepare_gradients(int head_dim, ElementType type) {
    for (Owner owner : {Owner::queries, Owner::keys}) {
        with_config(owner, head_dim, type, []<class C>(C) {
            check(cudaFuncSetAttribute(gradients<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes),
                  "shared memory of a Hopper gradient kernel");
        });
    }
}

void launch_gradients(Owner owner, const GradientParams& params, ElementType type, cudaStream_t stream) {
    const int heads = owner == Owner::keys ? params.heads / params.group : params.heads;
    with_config(owner, params.head_dim, type, [&]<class C>(C) {
        gradients<C><<<params.num_tiles * heads, C::kThreads, C::kSharedBytes, stream>>>(params);
    });
    check(cudaGetLastError(), "launch of a Hopper gradient kernel");
}

}  // namespace hopper
