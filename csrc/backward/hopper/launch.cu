#include "backward/hopper/kernel.h"
#include "backward/launcher.h"

namespace hopper {
namespace {

struct Kernels {
    static constexpr const char* kName = "a Hopper gradient kernel";

    template <class Element, int kWidth, Owner kOwner>
    using Config = GradientConfigOf<Element, kWidth, kOwner>;
    using Widths = GradientWidths;

    template <class C>
    static auto kernel() {
        return gradients<C>;
    }
};

}  // namespace

const GradientLauncher gradient_launcher = backward::kLauncher<Kernels>;

}  // namespace hopper
