// The configuration of a gradient kernel for what a call says at run time.
#pragma once
#include "backward/params.h"
#include "common/visit.h"

namespace backward {

template <template <class, int, Owner> class ConfigOf, Owner kOwner>
struct Owned {
    template <class Element, int kWidth>
    using Config = ConfigOf<Element, kWidth, kOwner>;
};

template <template <class, int, Owner> class ConfigOf, class Widths, class Visit>
auto with_config(Owner owner, int head_dim, ElementType type, Visit visit) {
    return owner == Owner::keys
               ? ::with_config<Owned<ConfigOf, Owner::keys>::template Config, Widths>(head_dim, type, visit)
               : ::with_config<Owned<ConfigOf, Owner::queries>::template Config, Widths>(head_dim, type, visit);
}

}  // namespace backward
