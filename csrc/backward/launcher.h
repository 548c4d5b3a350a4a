// The launcher of one set of gradient kernels: Kernels has kName, Config<Element, kWidth, kOwner>, Widths and
// kernel<C>().
#pragma once
#include "backward/launch.h"
#include "backward/visit.h"

namespace backward {

template <class Kernels>
struct Launcher {
    template <class Visit>
    static auto with_config(Owner owner, int head_dim, ElementType type, Visit visit) {
        return backward::with_config<Kernels::template Config, typename Kernels::Widths>(owner, head_dim, type, visit);
    }

    static GradientTile tile(Owner owner, int head_dim) {
        return with_config(owner, head_dim, ElementType::bf16, []<class C>(C) {
            return GradientTile{.owned = C::kOwned, .walked = C::kWalked, .blocks_per_sm = C::kBlocksPerSm};
        });
    }

    static void prepare(int head_dim, ElementType type) {
        for (Owner owner : {Owner::queries, Owner::keys}) {
            with_config(owner, head_dim, type, []<class C>(C) {
                allow_shared(Kernels::template kernel<C>(), C::kSharedBytes, Kernels::kName);
            });
        }
    }

    static void launch(Owner owner, const GradientParams& params, ElementType type, cudaStream_t stream) {
        with_config(owner, params.head_dim, type, [&]<class C>(C) {
            Kernels::template kernel<C>()<<<blocks(owner, params), C::kThreads, C::kSharedBytes, stream>>>(params);
        });
        check(cudaGetLastError(), (std::string("launch of ") + Kernels::kName).c_str());
    }
};

template <class Kernels>
constexpr GradientLauncher kLauncher = {
    .tile = Launcher<Kernels>::tile, .prepare = Launcher<Kernels>::prepare, .launch = Launcher<Kernels>::launch};

}  // namespace backward
