// The extension tivtok_kernels.cuda.extension. It knows pointers, sizes and streams, and nothing of torch: one binary
// for every version of it. Tensors arrive as (pointer, row stride, head stride), strides in elements.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <span>

#include "backward/launch.h"
#include "forward/ampere/launch.h"
#include "merge/launch.h"
#if TIVTOK_HAS_HOPPER
#include "forward/hopper/launch.h"
#endif

namespace py = pybind11;

namespace {

using Address = uintptr_t;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// Makes a device current, and again the one that was.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "asking for the current device");
        if (before_ != device) check(cudaSetDevice(device), "changing the device");
        changed_ = before_ != device;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;

  private:
    int before_;
    bool changed_;
};

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

// Takes one by one what a launch is given.
class Arguments {
  public:
    explicit Arguments(std::span<const int64_t> values) : next_(values.data()) {}

    template <class T>
    T* next() {
        return pointer<T>(*next_++);
    }
    Tensor tensor() {
        const auto data = next<void>();
        const auto row = *next_++, head = *next_++;
        return {data, row, head};
    }

  private:
    const int64_t* next_;
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

    // addresses: (pointer, row stride, head stride) of q, k, v, k_tiv, v_tiv, then pointers, in the order below.
    void launch(float scale, Address stream_address, const std::array<int64_t, 19>& addresses) const {
        Arguments arguments(addresses);
        ForwardParams params = params_;
        params.scale = scale;
        for (Tensor* x : {&params.q, &params.k, &params.v, &params.k_tiv, &params.v_tiv}) *x = arguments.tensor();
        params.out = arguments.next<void>();
        for (float** x : {&params.lse, &params.part_out, &params.part_lse}) *x = arguments.next<float>();

        const auto stream = reinterpret_cast<cudaStream_t>(stream_address);
        const DeviceGuard guard(device_);
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
        const DeviceGuard guard(device_);
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
                  int64_t q_rows, int64_t k_rows, int64_t tiv_rows, Address order, Address bounds, int blocks,
                  int kept_pairs)
        : ForwardPlan(device, dtype, heads, group, head_dim, work),
          rows_{q_rows, k_rows, tiv_rows},
          shares_{pointer<int>(order), pointer<int>(bounds), blocks, kept_pairs} {
        const DeviceGuard guard(device_);
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
        params_.heads = heads;
        params_.group = group;
        params_.head_dim = head_dim;
    }
    virtual ~BackwardPlan() = default;

    // addresses: (pointer, row stride, head stride) of q, dout, k, v, k_tiv, v_tiv, then pointers, in the order below.
    void launch(float scale, int rows, Address stream_address, const std::array<int64_t, 30>& addresses) const {
        Arguments arguments(addresses);
        GradientParams params = params_;
        params.rows = rows;
        params.scale = scale;
        for (Tensor* x : {&params.q, &params.dout, &params.k, &params.v, &params.k_tiv, &params.v_tiv})
            *x = arguments.tensor();
        const auto out = arguments.next<void>();
        const auto lse = arguments.next<float>(), dlse = arguments.next<float>(), stats = arguments.next<float>();
        for (void** x : {&params.dq, &params.dk, &params.dv, &params.dk_tiv, &params.dv_tiv})
            *x = arguments.next<void>();
        for (float** x : {&params.part_dq, &params.part_dk, &params.part_dv}) *x = arguments.next<float>();
        params.stats = stats;

        const auto stream = reinterpret_cast<cudaStream_t>(stream_address);
        const DeviceGuard guard(device_);
        launch_row_statistics({out, params.dout, lse, dlse, stats, rows, params.heads, params.head_dim}, type_, stream);
        launch_owner(Owner::queries, queries_, params, stream);
        sum_pieces(queries_, params.heads, params.part_dq, params.dq, params.dq, stream);
        launch_owner(Owner::keys, keys_, params, stream);
        const int key_heads = params.heads / params.group;
        sum_pieces(keys_, key_heads, params.part_dk, params.dk, params.dk_tiv, stream);
        sum_pieces(keys_, key_heads, params.part_dv, params.dv, params.dv_tiv, stream);
    }

  protected:
    virtual void launch_kernel(Owner owner, const GradientParams& params, cudaStream_t stream) const = 0;

    int device_;
    ElementType type_;
    GradientParams params_{};

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
            {part, grad, grad_tiv, pointer<int>(work.merges), work.num_merges, heads, work.block, params_.head_dim},
            type_, stream);
    }

    Work queries_, keys_;
};

class AmpereBackward : public BackwardPlan {
  public:
    template <class... Args>
    explicit AmpereBackward(Args... args) : BackwardPlan(args...) {
        const DeviceGuard guard(device_);
        ampere::prepare_gradients(params_.head_dim, type_);
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
        const DeviceGuard guard(device_);
        hopper::prepare_gradients(params_.head_dim, type_);
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

    py::class_<Work>(m, "Work").def(py::init<Address, int, Address, int, int>(), py::arg("tiles"), py::arg("num_tiles"),
                                    py::arg("merges"), py::arg("num_merges"), py::arg("block"));
    py::class_<ForwardPlan>(m, "ForwardPlan").def("launch", &ForwardPlan::launch);
    py::class_<AmpereForward, ForwardPlan>(m, "AmpereForward")
        .def(py::init<int, std::string, int, int, int, Work>(), py::arg("device"), py::arg("dtype"), py::arg("heads"),
             py::arg("group"), py::arg("head_dim"), py::arg("work"));
    m.def("ampere_forward_tile", [](int head_dim) {
        const auto tile = ampere::forward_tile(head_dim);
        return py::make_tuple(tile.block_q, tile.block_k, tile.blocks_per_sm);
    });

    py::class_<BackwardPlan>(m, "BackwardPlan").def("launch", &BackwardPlan::launch);
    def_backward<AmpereBackward>(m, "AmpereBackward");
    def_gradient_tile(m, "ampere_gradient_tile", ampere::gradient_tile);
#if TIVTOK_HAS_HOPPER
    def_backward<HopperBackward>(m, "HopperBackward");
    def_gradient_tile(m, "hopper_gradient_tile", hopper::gradient_tile);
    py::class_<HopperForward, ForwardPlan>(m, "HopperForward")
        .def(py::init<int, std::string, int, int, int, Work, int64_t, int64_t, int64_t, Address, Address, int, int>(),
             py::arg("device"), py::arg("dtype"), py::arg("heads"), py::arg("group"), py::arg("head_dim"),
             py::arg("work"), py::arg("q_rows"), py::arg("k_rows"), py::arg("tiv_rows"), py::arg("order"),
             py::arg("bounds"), py::arg("blocks"), py::arg("kept_pairs"));
    m.def("hopper_forward_tile", [](int head_dim) {
        const auto tile = hopper::forward_tile(head_dim);
        return py::make_tuple(tile.block_q, tile.block_k, tile.blocks_per_sm, tile.kept_pairs);
    });
#endif
}
