// What the engine is told, in 8-byte fields so that a caller without this header can lay it out as an array of int64.
// Shapes: N query rows, M key rows, M' TIV key rows (scope "broadcast", else M' = M and the TIV tensors are k and v
// again), H query heads, Hk = H / group key heads, D head_dim. Tensors of the call's dtype where no type is given.
#pragma once
#include <cstdint>

namespace tivtok {

enum class ElementType : int64_t { fp32 = 0, bf16 = 1, fp16 = 2 };

// A (rows, heads, head_dim) tensor, contiguous along head_dim.
struct Tensor {
    const void* data;
    int64_t row, head;  // strides in elements
};

// Query rows, and the keys that they see beside the TIV keys: for frames of a clip the same rows.
struct Frame {
    int64_t row, tokens;  // in q
    int64_t key, keys;    // in k and v
};

// What one thread does for one key head in one go: some frames of a clip, or some rows of one large frame, and what the
// clip's TIV rows see there. Of a mask of two ranges TIV keys are range A, frames are runs of rows with
// range B, and there are no TIV rows. See tivtok_kernels/cpu/plan.py.
struct Unit {
    int64_t tiv_row;         // first of the clip's TIV rows in q
    int64_t tiv_key;         // and in the TIV keys
    int64_t num_tiv;         // TIV keys, and TIV rows if there are any
    int64_t frame, frames;   // first in Plan::frames, and how many
    int64_t row, row_end;    // of each frame; whole frames unless `frames` is 1
    int64_t self, self_end;  // TIV keys that the TIV rows see here
    int64_t tiv_sees_rows;   // 1: the TIV rows see the keys [row, row_end) of each frame
    int64_t q_slot;          // row of the TIV rows' partial results in a workspace, -1: nobody else has any
    int64_t k_slot;          // the same for the gradients of the TIV keys
    int64_t frame_slot;      // the same for the gradients of the frame's keys
};

// Partial results of the same rows, to be added up in order.
struct Merge {
    int64_t row, length;
    int64_t slot, slots;  // row of the first in the workspace, and how many
};

// Rows and the two ranges of keys that they see, or keys and the two ranges of rows that see them.
struct Run {
    int64_t start, length;
    int64_t a, a_length, b, b_length;
};

struct Plan {
    const Unit* units;  // (num_units)
    int64_t num_units;
    const Frame* frames;
    const Merge *q_merges, *k_merges, *frame_merges;
    int64_t num_q_merges, num_k_merges, num_frame_merges;
    const Run *row_runs, *key_runs;  // in the place of units in the backward of a mask of two ranges
    int64_t num_row_runs, num_key_runs;
};

struct Shape {
    ElementType type;
    int64_t heads;  // H
    int64_t group;  // query heads per key head
    int64_t head_dim;
};

struct ForwardParams {
    Plan plan;
    Shape shape;
    Tensor q;             // (N, H, D)
    Tensor k, v;          // (M, Hk, D): keys of the frames
    Tensor k_tiv, v_tiv;  // (M', Hk, D)
    void* out;            // (N, H, D) contiguous
    float* lse;           // (N, H) contiguous, natural logarithm; null: not wanted
    float* part;          // (slot rows, H, padded D + 2): states of TIV rows
};

struct BackwardParams {
    Plan plan;
    Shape shape;
    Tensor q, dout;                        // (N, H, D)
    Tensor k, v;                           // (M, Hk, D)
    Tensor k_tiv, v_tiv;                   // (M', Hk, D)
    const void* out;                       // (N, H, D) contiguous
    const float *lse, *dlse;               // (N, H) contiguous; dlse may be null
    void *dq, *dk, *dv, *dk_tiv, *dv_tiv;  // contiguous, shaped like what they are gradients of
    float* part_q;                         // (q slot rows, H, padded D)
    float* part_k;                         // (k slot rows, Hk, 2, padded D): dK and dV of TIV keys
    float* part_frame;                     // (frame slot rows, Hk, 2, padded D): dK and dV of frames
};

// Columns are padded with zeros to whole panels.
constexpr int64_t PANEL = 16;

// Slots hold the TIV rows of a clip rounded up to this many, a multiple of every variant's group of rows.
constexpr int64_t SLOT_ROWS = 48;

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The unit that the same thread does afterwards, null if it is not known: its first rows are asked for meanwhile.
struct Next {
    const Unit* unit;
    int64_t key_head;
};

// One instruction set's kernels. Scratch memory is aligned to 64 bytes and as large as `scratch` says, in floats.
struct ForwardKernels {
    int64_t (*scratch)(const ForwardParams&, const Unit&);
    void (*unit)(const ForwardParams&, const Unit&, int64_t key_head, const Next&, float scale, float* scratch);
    void (*merge)(const ForwardParams&, const Merge&, int64_t head);
};

struct BackwardKernels {
    int64_t (*scratch)(const BackwardParams&, const Unit&);
    void (*unit)(const BackwardParams&, const Unit&, int64_t key_head, float scale, float* scratch);
    void (*merge_q)(const BackwardParams&, const Merge&, int64_t head, float scale);
    void (*merge_keys)(const BackwardParams&, const Merge&, int64_t key_head, float scale, bool tiv);
    int64_t (*run_scratch)(const BackwardParams&, const Run&);
    void (*row_gradients)(const BackwardParams&, const Run&, int64_t key_head, float scale, float* scratch);
    void (*key_gradients)(const BackwardParams&, const Run&, int64_t key_head, float scale, float* scratch);
};

struct Variant {
    ForwardKernels forward;
    BackwardKernels backward;
};

}  // namespace tivtok
