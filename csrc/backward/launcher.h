// The functions of backward/launch.h for one set of kernels: Kernels has kName, Config<Element, kWidth, kOwner>,
// kernel<C>() and with_width(head_dim, visit).
#pragma once
#include "backward/launch.h"
#include "common/visit.h"

namespace backward {

template <class Kernels, class Visit>
auto with_config(Owner owner, int head_dim, ElementType type, Visit visit) {
    return with_element(type, [&]<class Element>(Element) {
        return Kernels::with_width(head_dim, [&]<int kWidth>(std::integral_constant<int, kWidth>) {
            return owner == Owner::keys ? visit(typename Kernels::template Config<Element, kWidth, Owner::keys>{})
                                        : visit(typename Kernels::template Config<Element, kWidth, Owner::queries>{});
        });
    });
}

template <class Kernels>
GradientTile tile(Owner owner, int head_dim) {
    return with_config<Kernels>(owner, head_dim, ElementType::bf16,
                                []<class C>(C) { return GradientTile{C::kOwned, C::kWalked, C::kBlocksPerSm}; });
}

template <class Kernels>
void prepare(int head_dim, ElementType type) {
    for (Owner owner : {Owner::queries, Owner::keys}) {
        with_config<Kernels>(owner, head_dim, type, []<class C>(C) {
            allow_shared(Kernels::template kernel<C>(), C::kSharedBytes, Kernels::kName);
        });
    }
}

template <class Kernels>
void launch(Owner owner, const GradientParams& params, ElementType type, cudaStream_t stream) {
    const int heads = owner == Owner::keys ? params.heads / params.group : params.heads;
    with_config<Kernels>(owner, params.head_dim, type, [&]<class C>(C) {
        Kernels::template kernel<C>()<<<params.num_tiles * heads, C::kThreads, C::kSharedBytes, stream>>>(params);
    });
    check(cudaGetLastError(), (std::string("launch of ") + Kernels::kName).c_str());
}

}  // namespace backward
