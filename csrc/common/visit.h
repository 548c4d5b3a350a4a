// From what a call says at run time to what kernels are compiled for.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/device.h"
#include "common/tensor.h"

// Calls visit with a value of the type.
template <class Visit>
auto with_element(ElementType type, Visit visit) {
    return type == ElementType::bf16 ? visit(dev::bf16{}) : visit(dev::fp16{});
}

// Calls visit with the smallest of the widths, given in order, that holds head_dim, as a constant.
template <int kWidth, int... kWider, class Visit>
auto with_width(int head_dim, Visit visit) {
    if constexpr (sizeof...(kWider) > 0) {
        if (head_dim > kWidth) return with_width<kWider...>(head_dim, visit);
    }
    return visit(std::integral_constant<int, kWidth>{});
}

// The same for kernels that pad nothing. Throws std::invalid_argument if head_dim is none of the widths.
template <int... kWidths, class Visit>
auto with_exact_width(int head_dim, Visit visit) {
    if (((head_dim != kWidths) && ...)) {
        std::string widths;
        ((widths += (widths.empty() ? "" : " or ") + std::to_string(kWidths)), ...);
        throw std::invalid_argument("head_dim must be " + widths + ", got " + std::to_string(head_dim));
    }
    return with_width<kWidths...>(head_dim, visit);
}
