#include "backward/ampere/kernel.h"
#include "backward/launcher.h"

namespace ampere {
namespace {

struct Kernels {
    static constexpr const char* kName = "an Ampere gradient kernel";

    template <class Element, int kWidth, Owner kOwner>
    using Config = GradientConfigOf<Element, kWidth, kOwner>;

    template <class C>
    static auto kernel() {
        return gradients<C>;
    }
    template <class Visit>
    static auto with_width(int head_dim, Visit visit) {
        return ::with_width<32, 64, 128>(head_dim, visit);
    }
};

}  // namespace

GradientTile gradient_tile(Owner owner, int head_dim) { return backward::tile<Kernels>(owner, head_dim); }

void prepare_gradients(int head_dim, ElementType type) { backward::prepare<Kernels>(head_dim, type); }

void launch_gradients(Owner owner, const GradientParams& params, ElementType type, cudaStream_t stream) {
    backward::launch<Kernels>(owner, params, type, stream);
}

}  // namespace ampere
