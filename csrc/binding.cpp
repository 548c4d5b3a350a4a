// The extension tivtok_kernels.cuda.extension. It knows pointers, sizes and streams, and nothing of torch: one binary
// for every version of it. Whatever has more than one value of a type arrives by name (fields.h): tensors as
// (pointer, row stride, head stride), strides in elements, anything contiguous as a pointer.
#include "backward/launch.h"
#include "fields.h"
#include "forward/ampere/launch.h"
#include "merge/launch.h"
#if TIVTOK_HAS_HOPPER
#include "forward/hopper/launch.h"
#endif

namespace {

// The caller makes the device current: torch knows how to, without a context on a device that nobody uses.
void check_current(int device) {
    int current;
    check(cudaGetDevice(&current), "asking for the current device");
    if (current != device)
        throw std::runtime_error("device " + std::to_string(device) + " must be the current one, it is " +
                                 std::to_string(current));
}

// What all launches of a plan have in common but for their rows.
struct Shape {
    int device;
    ElementType dtype;
    int heads, group, head_dim;
};

const Field<Shape> kShapeFields[] = {
    FIELD(Shape, device), FIELD(Shape, dtype), FIELD(Shape, heads), FIELD(Shape, group), FIELD(Shape, head_dim),
};

// A work list and the merges of its split tiles, as schedule.WorkList has them, for tiles of `block` rows.
struct Work {
    const int* tiles;
    int num_tiles;
    const int* merges;
    int num_merges, block;
};

const Field<Work> kWorkFields[] = {
    FIELD(Work, tiles), FIELD(Work, num_tiles), FIELD(Work, merges), FIELD(Work, num_merges), FIELD(Work, block),
};

const Field<ForwardTile> kForwardTileFields[] = {
    FIELD(ForwardTile, block_q),
    FIELD(ForwardTile, block_k),
    FIELD(ForwardTile, blocks_per_sm),
};

const Field<GradientTile> kGradientTileFields[] = {
    FIELD(GradientTile, owned),
    FIELD(GradientTile, walked),
    FIELD(GradientTile, blocks_per_sm),
};

const Field<Shares> kSharesFields[] = {
    FIELD(Shares, order),
    FIELD(Shares, bounds),
    FIELD(Shares, blocks),
};

#if TIVTOK_HAS_HOPPER
const Field<hopper::RowCounts> kRowCountsFields[] = {
    FIELD(hopper::RowCounts, q),
    FIELD(hopper::RowCounts, k),
    FIELD(hopper::RowCounts, tiv),
};
#endif

const Field<ForwardParams> kForwardFields[] = {
    FIELD(ForwardParams, scale),    FIELD(ForwardParams, q),     FIELD(ForwardParams, k),
    FIELD(ForwardParams, v),        FIELD(ForwardParams, k_tiv), FIELD(ForwardParams, v_tiv),
    FIELD(ForwardParams, out),      FIELD(ForwardParams, lse),   FIELD(ForwardParams, part_out),
    FIELD(ForwardParams, part_lse),
};

// What a backward launch takes: that of the gradient kernels, and what the row statistics are made from and left in.
struct BackwardCall : GradientParams {
    const void* out;
    const float *lse, *dlse;
    float* row_stats;
};

const Field<BackwardCall> kBackwardFields[] = {
    FIELD(BackwardCall, scale),   FIELD(BackwardCall, rows),    FIELD(BackwardCall, q),
    FIELD(BackwardCall, dout),    FIELD(BackwardCall, k),       FIELD(BackwardCall, v),
    FIELD(BackwardCall, k_tiv),   FIELD(BackwardCall, v_tiv),   FIELD(BackwardCall, out),
    FIELD(BackwardCall, lse),     FIELD(BackwardCall, dlse),    FIELD(BackwardCall, row_stats),
    FIELD(BackwardCall, dq),      FIELD(BackwardCall, dk),      FIELD(BackwardCall, dv),
    FIELD(BackwardCall, dk_tiv),  FIELD(BackwardCall, dv_tiv),  FIELD(BackwardCall, part_dq),
    FIELD(BackwardCall, part_dk), FIELD(BackwardCall, part_dv),
};

// The forward over one layout: everything but the tensors. Work lists are device addresses that outlive the plan.
class ForwardPlan {
  public:
    ForwardPlan(const Shape& shape, const Work& work)
        : shape_(shape),
          work_(work),
          params_{.tiles = work.tiles,
                  .num_tiles = work.num_tiles,
                  .heads = shape.heads,
                  .group = shape.group,
                  .head_dim = shape.head_dim} {
        check_current(shape.device);
    }
    virtual ~ForwardPlan() = default;

    void launch(Address stream_address, const py::dict& arguments) const {
        const ForwardParams params = filled("launch", params_, arguments, kForwardFields);
        const auto stream = reinterpret_cast<cudaStream_t>(stream_address);
        check_current(shape_.device);
        launch_kernel(params, stream);
        if (work_.num_merges == 0) return;
        merge::launch_outputs({.part_out = params.part_out,
                               .part_lse = params.part_lse,
                               .out = params.out,
                               .lse = params.lse,
                               .merges = work_.merges,
                               .num_merges = work_.num_merges,
                               .heads = shape_.heads,
                               .block = work_.block,
                               .head_dim = shape_.head_dim},
                              shape_.dtype, stream);
    }

  protected:
    virtual void launch_kernel(const ForwardParams& params, cudaStream_t stream) const = 0;

    const Shape shape_;

  private:
    const Work work_;
    const ForwardParams params_;  // without its tensors
};

class AmpereForward : public ForwardPlan {
  public:
    AmpereForward(const Shape& shape, const Work& work) : ForwardPlan(shape, work) {
        ampere::prepare_forward(shape.head_dim, shape.dtype);
    }

  private:
    void launch_kernel(const ForwardParams& params, cudaStream_t stream) const override {
        ampere::launch_forward(params, shape_.dtype, stream);
    }
};

#if TIVTOK_HAS_HOPPER
class HopperForward : public ForwardPlan {
  public:
    HopperForward(const Shape& shape, const Work& work, const hopper::RowCounts& rows, const Shares& shares)
        : ForwardPlan(shape, work), rows_(rows), shares_(shares) {
        hopper::prepare_forward(shape.head_dim, shape.dtype);
    }

  private:
    void launch_kernel(const ForwardParams& params, cudaStream_t stream) const override {
        hopper::launch_forward(params, rows_, shares_, shape_.dtype, stream);
    }

    const hopper::RowCounts rows_;
    const Shares shares_;
};
#endif

const GradientLauncher& gradient_launcher(const std::string& engine) {
    if (engine == "ampere") return ampere::gradient_launcher;
#if TIVTOK_HAS_HOPPER
    if (engine == "hopper") return hopper::gradient_launcher;
#endif
    throw py::value_error(std::string("engine must be ") + (TIVTOK_HAS_HOPPER ? "ampere or hopper" : "ampere") +
                          ", got " + engine);
}

// The backward over one layout: everything but the tensors.
class BackwardPlan {
  public:
    BackwardPlan(const std::string& engine, const Shape& shape, const Work& queries, const Work& keys,
                 const Shares* shares)
        : kernels_(gradient_launcher(engine)), shape_(shape), queries_(queries), keys_(keys) {
        if (kernels_.is_persistent != (shares != nullptr))
            throw py::value_error("shares: the kernels of engine " + engine +
                                  (kernels_.is_persistent ? " need them, got None" : " have none, got some"));
        check_current(shape.device);
        kernels_.prepare(shape.head_dim, shape.dtype);
        if (shares) call_.shares = *shares;
        call_.query_tiles = queries.tiles;
        call_.num_query_tiles = queries.num_tiles;
        call_.key_tiles = keys.tiles;
        call_.num_key_tiles = keys.num_tiles;
        call_.heads = shape.heads;
        call_.group = shape.group;
        call_.head_dim = shape.head_dim;
    }

    void launch(Address stream_address, const py::dict& arguments) const {
        BackwardCall call = filled("launch", call_, arguments, kBackwardFields);
        call.stats = call.row_stats;
        const auto stream = reinterpret_cast<cudaStream_t>(stream_address);
        check_current(shape_.device);
        launch_row_statistics({.out = call.out,
                               .dout = call.dout,
                               .lse = call.lse,
                               .dlse = call.dlse,
                               .stats = call.row_stats,
                               .rows = call.rows,
                               .heads = call.heads,
                               .head_dim = call.head_dim},
                              shape_.dtype, stream);
        kernels_.launch(call, shape_.dtype, stream);
        sum_pieces(queries_, call.heads, {.part = call.part_dq, .grad = call.dq, .grad_tiv = call.dq}, stream);
        const int key_heads = call.heads / call.group;
        sum_pieces(keys_, key_heads, {.part = call.part_dk, .grad = call.dk, .grad_tiv = call.dk_tiv}, stream);
        sum_pieces(keys_, key_heads, {.part = call.part_dv, .grad = call.dv, .grad_tiv = call.dv_tiv}, stream);
    }

  private:
    void sum_pieces(const Work& work, int heads, SumGradientsParams sum, cudaStream_t stream) const {
        if (work.num_merges == 0) return;
        sum.merges = work.merges;
        sum.num_merges = work.num_merges;
        sum.heads = heads;
        sum.block = work.block;
        sum.head_dim = shape_.head_dim;
        merge::launch_gradients(sum, shape_.dtype, stream);
    }

    const GradientLauncher& kernels_;
    const Shape shape_;
    const Work queries_, keys_;
    BackwardCall call_{};  // without its tensors
};

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

    def_structure(m, "Shape", kShapeFields);
    def_structure(m, "Work", kWorkFields);
    def_structure(m, "ForwardTile", kForwardTileFields);
    def_structure(m, "GradientTile", kGradientTileFields);
    def_structure(m, "Shares", kSharesFields);
    py::enum_<Owner>(m, "Owner").value("queries", Owner::queries).value("keys", Owner::keys);

    py::class_<ForwardPlan>(m, "ForwardPlan")
        .def("launch", &ForwardPlan::launch, py::arg("stream"), py::arg("arguments"));
    py::class_<AmpereForward, ForwardPlan>(m, "AmpereForward")
        .def(py::init<const Shape&, const Work&>(), py::arg("shape"), py::arg("work"));
    m.def("ampere_forward_tile", ampere::forward_tile, py::arg("head_dim"));
#if TIVTOK_HAS_HOPPER
    def_structure(m, "RowCounts", kRowCountsFields);
    py::class_<HopperForward, ForwardPlan>(m, "HopperForward")
        .def(py::init<const Shape&, const Work&, const hopper::RowCounts&, const Shares&>(), py::arg("shape"),
             py::arg("work"), py::arg("rows"), py::arg("shares"));
    m.def("hopper_forward_tile", hopper::forward_tile, py::arg("head_dim"));
#endif

    py::class_<BackwardPlan>(m, "BackwardPlan")
        .def(py::init<const std::string&, const Shape&, const Work&, const Work&, const Shares*>(), py::arg("engine"),
             py::arg("shape"), py::kw_only(), py::arg("queries"), py::arg("keys"), py::arg("shares"))
        .def("launch", &BackwardPlan::launch, py::arg("stream"), py::arg("arguments"));
    m.def(
        "gradient_tile",
        [](const std::string& engine, Owner owner, int head_dim) {
            return gradient_launcher(engine).tile(owner, head_dim);
        },
        py::arg("engine"), py::arg("owner"), py::arg("head_dim"));
}
