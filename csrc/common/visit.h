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

// Widths, in order, of kernels that pad: the smallest that holds head_dim is called visit with, as a constant.
template <int kWidth, int... kWider>
struct PaddedWidths {
    template <class Visit>
    static auto with(int head_dim, Visit visit) {
        if constexpr (sizeof...(kWider) > 0) {
            if (head_dim > kWidth) return PaddedWidths<kWider...>::with(head_dim, visit);
        }
        return visit(std::integral_constant<int, kWidth>{});
    }
};

// Of kernels that pad nothing. Throws std::invalid_argument if head_dim is none of them.
template <int... kWidths>
struct ExactWidths {
    template <class Visit>
    static auto with(int head_dim, Visit visit) {
        if (((head_dim != kWidths) && ...)) {
            std::string widths;
            ((widths += (widths.empty() ? "" : " or ") + std::to_string(kWidths)), ...);
            throw std::invalid_argument("head_dim must be " + widths + ", got " + std::to_string(head_dim));
        }
        return PaddedWidths<kWidths...>::with(head_dim, visit);
    }
};

// Calls visit with the configuration for a head_dim and a type.
template <template <class, int> class ConfigOf, class Widths, class Visit>
auto with_config(int head_dim, ElementType type, Visit visit) {
    return with_element(type, [&]<class Element>(Element) {
        return Widths::with(head_dim, [&]<int kWidth>(std::integral_constant<int, kWidth>) {
            return visit(ConfigOf<Element, kWidth>{});
        });
    });
}
