// The extension tivtok_kernels.cuda.extension. It knows pointers, sizes and streams, and nothing of torch: one binary
// for every version of it. What a launch takes arrives by name: tensors as (pointer, row stride, head stride), strides
// in elements, anything contiguous as a pointer. The tables of fields below say which name is what.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <variant>

#include "backward/launch.h"
#include "forward/ampere/launch.h"
#include "merge/launch.h"
#if TIVTOK_HAS_HOPPER
#include "forward/hopper/launch.h"
#endif

namespace py = pybind11;

template <>
struct pybind11::detail::type_caster<Tensor> {
    PYBIND11_TYPE_CASTER(Tensor, const_name("tuple[int, int, int]"));

    bool load(handle source, bool convert) {
        make_caster<std::tuple<uintptr_t, int64_t, int64_t>> fields;
        if (!fields.load(source, convert)) return false;
        const auto [data, row, head] = static_cast<std::tuple<uintptr_t, int64_t, int64_t>>(fields);
        value = {reinterpret_cast<const void*>(data), row, head};
        return true;
    }
};

namespace {

using Address = uintptr_t;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// The caller makes the device current: torch knows how to, without a context on a device that nobody uses.
void check_current(int device) {
    int current;
    check(cudaGetDevice(&current), "asking for the current device");
    if (current != device)
        throw std::runtime_error("device " + std::to_string(device) + " must be the current one, it is " +
                                 std::to_string(current));
}

ElementType element_type(const std::string& name) {
    if (name == "bfloat16") return ElementType::bf16;
    if (name == "float16") return ElementType::fp16;
    throw py::value_error("dtype must be bfloat16 or float16, got " + name);
}

// A work list and the merges of its split tiles, as schedule.WorkList has them, for tiles of `block` rows.
struct Work {
    Address tiles;
    int num_tiles;
    Address merges;
    int num_merges, block;
};

// An argument of a launch and where it goes.
template <class Call>
struct Field {
    const char* name;
    std::variant<Tensor Call::*, int Call::*, float Call::*, void* Call::*, const void* Call::*, float* Call::*,
                 const float* Call::*>
        member;
};

// call with all fields set from arguments, which must be there; there must be no others.
template <class Call, size_t kFields>
Call call_of(Call call, const py::dict& arguments, const Field<Call> (&fields)[kFields]) {
    for (const auto& [name, member] : fields) {
        PyObject* argument = PyDict_GetItemString(arguments.ptr(), name);
        if (argument == nullptr) throw py::type_error(std::string("launch needs the argument ") + name);
        const auto value = py::reinterpret_borrow<py::object>(argument);
        std::visit(
            [&](auto field) {
                using Value = std::remove_reference_t<decltype(call.*field)>;
                if constexpr (std::is_pointer_v<Value>) {
                    call.*field = reinterpret_cast<Value>(value.cast<Address>());
                } else {
                    call.*field = value.cast<Value>();
                }
            },
            member);
    }
    if (arguments.size() != kFields)
        throw py::type_error("launch takes " + std::to_string(kFields) + " arguments beside the stream, got " +
                             std::to_string(arguments.size()));
    return call;
}

template <class Call, size_t kFields>
py::tuple names_of(const Field<Call> (&fields)[kFields]) {
    py::tuple names(kFields);
    for (size_t i = 0; i < kFields; ++i) names[i] = fields[i].name;
    return names;
}

const Field<ForwardParams> kForwardFields[] = {
    {"scale", &ForwardParams::scale},
    {"q", &ForwardParams::q},
    {"k", &ForwardParams::k},
    {"v", &ForwardParams::v},
    {"k_tiv", &ForwardParams::k_tiv},
    {"v_tiv", &ForwardParams::v_tiv},
    {"out", &ForwardParams::out},
    {"lse", &ForwardParams::lse},
    {"part_out", &ForwardParams::part_out},
    {"part_lse", &ForwardParams::part_lse},
};

// What a backward launch takes: that of the gradient kernels, and what the row statistics are made from.
struct BackwardCall : GradientParams {
    const void* out;
    const float *lse, *dlse;
    float* row_stats;
};

const Field<BackwardCall> kBackwardFields[] = {
    {"scale", &BackwardCall::scale},
    {"rows", &BackwardCall::rows},
    {"q", &BackwardCall::q},
    {"dout", &BackwardCall::dout},
    {"k", &BackwardCall::k},
    {"v", &BackwardCall::v},
    {"k_tiv", &BackwardCall::k_tiv},
    {"v_tiv", &BackwardCall::v_tiv},
    {"out", &BackwardCall::out},
    {"lse", &BackwardCall::lse},
    {"dlse", &BackwardCall::dlse},
    {"stats", &BackwardCall::row_stats},
    {"dq", &BackwardCall::dq},
    {"dk", &BackwardCall::dk},
    {"dv", &BackwardCall::dv},
    {"dk_tiv", &BackwardCall::dk_tiv},
    {"dv_tiv", &BackwardCall::dv_tiv},
    {"part_dq", &BackwardCall::part_dq},
    {"part_dk", &BackwardCall::part_dk},
    {"part_dv", &BackwardCall::part_dv},
};

// The forward over one layout: everything but the tensors. Work lists are device addresses that outlive the plan.
class ForwardPlan {
  public:
    ForwardPlan(int device, const std::string& dtype, int heads, int group, int head_dim, const Work& work)
        : device_(device), type_(element_type(dtype)), work_(work) {
        params_.tiles = pointer<int>(work.tiles);
        params_.num_tiles = work.num_tiles;
        params_.heads = heads;
        params_.group = group;
        params_.head_dim = head_dim;
    }
    virtual ~ForwardPlan() = default;

    void launch(Address stream_address, const py::kwargs& arguments) const {
        const ForwardParams params = call_of(params_, arguments, kForwardFields);
        const auto stream = reinterpret_cast<cudaStream_t>(stream_address);
        check_current(device_);
        launch_kernel(params, stream);
        if (work_.num_merges == 0) return;
        merge::launch_outputs({params.part_out, params.part_lse, params.out, params.lse, pointer<int>(work_.merges),
                               work_.num_merges, params.heads, work_.block, params.head_dim},
                              type_, stream);
    }

  protected:
    virtual void launch_kernel(const ForwardParams& params, cudaStream_t stream) const = 0;

    int device_;
    ElementType type_;
    ForwardParams params_{};

  private:
    Work work_;
};

class AmpereForward : public ForwardPlan {
  public:
    template <class... Args>
    explicit AmpereForward(Args... args) : ForwardPlan(args...) {
        check_current(device_);
        ampere::prepare_forward(params_.head_dim, type_);
    }

  private:
    void launch_kernel(const ForwardParams& params, cudaStream_t stream) const override {
        ampere::launch_forward(params, type_, stream);
    }
};

#if TIVTOK_HAS_HOPPER
class HopperForward : public ForwardPlan {
  public:
    HopperForward(int device, const std::string& dtype, int heads, int group, int head_dim, const Work& work,
                  int64_t q_rows, int64_t k_rows, int64_t tiv_rows, Address order, Address bounds, int blocks)
        : ForwardPlan(device, dtype, heads, group, head_dim, work),
          rows_{q_rows, k_rows, tiv_rows},
          shares_{pointer<int>(order), pointer<int>(bounds), blocks} {
        check_current(device_);
        hopper::prepare_forward(params_.head_dim, type_);
    }

  private:
    void launch_kernel(const ForwardParams& params, cudaStream_t stream) const override {
        hopper::launch_forward(params, rows_, shares_, type_, stream);
    }

    hopper::RowCounts rows_;
    hopper::Shares shares_;
};
#endif

// The backward over one layout: everything but the tensors.
class BackwardPlan {
  public:
    BackwardPlan(int device, const std::string& dtype, int heads, int group, int head_dim, const Work& queries,
                 const Work& keys)
        : device_(device), type_(element_type(dtype)), queries_(queries), keys_(keys) {
        call_.heads = heads;
        call_.group = group;
        call_.head_dim = head_dim;
    }
    virtual ~BackwardPlan() = default;

    void launch(Address stream_address, const py::kwargs& arguments) const {
        BackwardCall call = call_of(call_, arguments, kBackwardFields);
        call.stats = call.row_stats;
        const auto stream = reinterpret_cast<cudaStream_t>(stream_address);
        check_current(device_);
        launch_row_statistics(
            {call.out, call.dout, call.lse, call.dlse, call.row_stats, call.rows, call.heads, call.head_dim}, type_,
            stream);
        launch_owner(Owner::queries, queries_, call, stream);
        sum_pieces(queries_, call.heads, call.part_dq, call.dq, call.dq, stream);
        launch_owner(Owner::keys, keys_, call, stream);
        const int key_heads = call.heads / call.group;
        sum_pieces(keys_, key_heads, call.part_dk, call.dk, call.dk_tiv, stream);
        sum_pieces(keys_, key_heads, call.part_dv, call.dv, call.dv_tiv, stream);
    }

  protected:
    virtual void launch_kernel(Owner owner, const GradientParams& params, cudaStream_t stream) const = 0;

    int device_;
    ElementType type_;
    BackwardCall call_{};  // without its tensors

  private:
    void launch_owner(Owner owner, const Work& work, GradientParams& params, cudaStream_t stream) const {
        if (work.num_tiles == 0) return;  // no rows on this side
        params.tiles = pointer<int>(work.tiles);
        params.num_tiles = work.num_tiles;
        launch_kernel(owner, params, stream);
    }

    void sum_pieces(const Work& work, int heads, const float* part, void* grad, void* grad_tiv,
                    cudaStream_t stream) const {
        if (work.num_merges == 0) return;
        merge::launch_gradients(
            {part, grad, grad_tiv, pointer<int>(work.merges), work.num_merges, heads, work.block, call_.head_dim},
            type_, stream);
    }

    Work queries_, keys_;
};

class AmpereBackward : public BackwardPlan {
  public:
    template <class... Args>
    explicit AmpereBackward(Args... args) : BackwardPlan(args...) {
        check_current(device_);
        ampere::prepare_gradients(call_.head_dim, type_);
    }

  private:
    void launch_kernel(Owner owner, const GradientParams& params, cudaStream_t stream) const override {
        ampere::launch_gradients(owner, params, type_, stream);
    }
};

#if TIVTOK_HAS_HOPPER
class HopperBackward : public BackwardPlan {
  public:
    template <class... Args>
    explicit HopperBackward(Args... args) : BackwardPlan(args...) {
        check_current(device_);
        hopper::prepare_gradients(call_.head_dim, type_);
    }

  private:
    void launch_kernel(Owner owner, const GradientParams& params, cudaStream_t stream) const override {
        hopper::launch_gradients(owner, params, type_, stream);
    }
};
#endif

template <class Plan>
void def_backward(py::module_& m, const char* name) {
    py::class_<Plan, BackwardPlan>(m, name).def(py::init<int, std::string, int, int, int, Work, Work>(),
                                                py::arg("device"), py::arg("dtype"), py::arg("heads"), py::arg("group"),
                                                py::arg("head_dim"), py::arg("queries"), py::arg("keys"));
}

void def_gradient_tile(py::module_& m, const char* name, GradientTile (*tile_of)(Owner, int)) {
    m.def(name, [tile_of](bool keys, int head_dim) {
        const auto tile = tile_of(keys ? Owner::keys : Owner::queries, head_dim);
        return py::make_tuple(tile.owned, tile.walked, tile.blocks_per_sm);
    });
}

}  // namespace

PYBIND11_MODULE(extension, m) {
    m.attr("HAS_HOPPER") = bool(TIVTOK_HAS_HOPPER);
    m.attr("ARCHITECTURES") = TIVTOK_ARCHS;
    m.attr("FORWARD_ARGUMENTS") = names_of(kForwardFields);
    m.attr("BACKWARD_ARGUMENTS") = names_of(kBackwardFields);
    m.def("versions", [] {
        int driver, runtime;
        check(cudaDriverGetVersion(&driver), "asking for the driver's version");
        check(cudaRuntimeGetVersion(&runtime), "asking for the toolkit's version");
        return py::make_tuple(driver, runtime);
    });

    py::class_<Work>(m, "Work").def(py::init<Address, int, Address, int, int>(), py::arg("tiles"), py::arg("num_tiles"),
                                    py::arg("merges"), py::arg("num_merges"), py::arg("block"));
    py::class_<ForwardPlan>(m, "ForwardPlan").def("launch", &ForwardPlan::launch, py::arg("stream"));
    py::class_<AmpereForward, ForwardPlan>(m, "AmpereForward")
        .def(py::init<int, std::string, int, int, int, Work>(), py::arg("device"), py::arg("dtype"), py::arg("heads"),
             py::arg("group"), py::arg("head_dim"), py::arg("work"));
    m.def("ampere_forward_tile", [](int head_dim) {
        const auto tile = ampere::forward_tile(head_dim);
        return py::make_tuple(tile.block_q, tile.block_k, tile.blocks_per_sm);
    });

    py::class_<BackwardPlan>(m, "BackwardPlan").def("launch", &BackwardPlan::launch, py::arg("stream"));
    def_backward<AmpereBackward>(m, "AmpereBackward");
    def_gradient_tile(m, "ampere_gradient_tile", ampere::gradient_tile);
#if TIVTOK_HAS_HOPPER
    def_backward<HopperBackward>(m, "HopperBackward");
    def_gradient_tile(m, "hopper_gradient_tile", hopper::gradient_tile);
    py::class_<HopperForward, ForwardPlan>(m, "HopperForward")
        .def(py::init<int, std::string, int, int, int, Work, int64_t, int64_t, int64_t, Address, Address, int>(),
             py::arg("device"), py::arg("dtype"), py::arg("heads"), py::arg("group"), py::arg("head_dim"),
             py::arg("work"), py::arg("q_rows"), py::arg("k_rows"), py::arg("tiv_rows"), py::arg("order"),
             py::arg("bounds"), py::arg("blocks"));
    m.def("hopper_forward_tile", [](int head_dim) {
        const auto tile = hopper::forward_tile(head_dim);
        return py::make_tuple(tile.block_q, tile.block_k, tile.blocks_per_sm);
    });
#endif
}
