#include "backward/ampere/kernel.h"
#include "backward/launcher.h"

namespace ampere {
namespace {

struct Kernels {
    static constexpr const char* kName = "an Ampere gradient kernel";

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

}  // namespace ampere
