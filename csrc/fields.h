// Structures that Python fills by naming every field, so that no two can be mistaken for one another. A table says
// which fields a structure has for Python; names are those of the members.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <variant>

#include "common/tensor.h"

namespace py = pybind11;

using Address = uintptr_t;  // a pointer as Python has it

// Tensors arrive as (address, row stride, head stride): a tuple costs a fraction of an object of a class.
template <>
struct pybind11::detail::type_caster<Tensor> {
    PYBIND11_TYPE_CASTER(Tensor, const_name("tuple[int, int, int]"));

    bool load(handle source, bool convert) {
        make_caster<std::tuple<Address, int64_t, int64_t>> fields;
        if (!fields.load(source, convert)) return false;
        const auto [data, row, head] = static_cast<std::tuple<Address, int64_t, int64_t>>(fields);
        value = {.data = reinterpret_cast<const void*>(data), .row = row, .head = head};
        return true;
    }

    static handle cast(const Tensor& x, return_value_policy, handle) {
        return make_tuple(reinterpret_cast<Address>(x.data), x.row, x.head).release();
    }
};

template <>
struct pybind11::detail::type_caster<ElementType> {
    PYBIND11_TYPE_CASTER(ElementType, const_name("str"));

    bool load(handle source, bool convert) {
        make_caster<std::string> loaded;
        if (!loaded.load(source, convert)) return false;
        const std::string& name = loaded;
        if (name != "bfloat16" && name != "float16")
            throw value_error("dtype must be bfloat16 or float16, got " + name);
        value = name == "bfloat16" ? ElementType::bf16 : ElementType::fp16;
        return true;
    }

    static handle cast(ElementType type, return_value_policy, handle) {
        return str(type == ElementType::bf16 ? "bfloat16" : "float16").release();
    }
};

template <class Struct>
struct Field {
    const char* name;
    std::variant<int Struct::*, int64_t Struct::*, float Struct::*, ElementType Struct::*, Tensor Struct::*,
                 void* Struct::*, const void* Struct::*, float* Struct::*, const float* Struct::*, const int* Struct::*>
        member;
};

// The entry of a table: a name cannot lead to another member.
#define FIELD(Struct, member) {#member, &Struct::member}

template <class T>
void set(T& field, py::handle value) {
    field = value.cast<T>();
}
template <class T>
void set(T*& field, py::handle value) {
    field = reinterpret_cast<T*>(value.cast<Address>());
}

template <class T>
T shown(const T& field) {
    return field;
}
template <class T>
Address shown(T* const& field) {
    return reinterpret_cast<Address>(field);
}

// `start` with all fields of the table set from the arguments. TypeError if one is missing, is of another type or has
// no field; `what` takes them.
template <class Struct, size_t kFields>
Struct filled(const char* what, Struct start, const py::dict& arguments, const Field<Struct> (&table)[kFields]) {
    for (const Field<Struct>& field : table) {
        const py::handle value = PyDict_GetItemString(arguments.ptr(), field.name);
        if (!value) throw py::type_error(std::string(what) + " needs the argument " + field.name);
        try {
            std::visit([&](auto member) { set(start.*member, value); }, field.member);
        } catch (const py::cast_error&) {
            throw py::type_error(std::string(what) + ": argument " + field.name + " does not take " +
                                 py::repr(value).cast<std::string>());
        }
    }
    if (arguments.size() == kFields) return start;
    for (const auto& [name, value] : arguments) {
        const auto given = py::cast<std::string>(name);
        bool known = false;
        for (const Field<Struct>& field : table) known |= given == field.name;
        if (!known) throw py::type_error(std::string(what) + " has no argument " + given);
    }
    return start;
}

template <class Struct, size_t kFields>
py::tuple names_of(const Field<Struct> (&table)[kFields]) {
    py::tuple names(kFields);
    for (size_t i = 0; i < kFields; ++i) names[i] = table[i].name;
    return names;
}

// The class of a structure: made from its fields by name, which can be read then.
template <class Struct, size_t kFields>
void def_structure(py::module_& m, const char* name, const Field<Struct> (&table)[kFields]) {
    py::class_<Struct> bound(m, name);
    bound.def(
        py::init([name, &table](const py::kwargs& arguments) { return filled(name, Struct{}, arguments, table); }));
    for (const Field<Struct>& field : table) {
        std::visit(
            [&](auto member) {
                bound.def_property_readonly(field.name, [member](const Struct& s) { return shown(s.*member); });
            },
            field.member);
    }
}
