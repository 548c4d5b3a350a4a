// Forward on mma.sync and cp.async: sm_80 and everything after it (docs/kernels/cuda-forward.md).
//
// A block owns one tile of query rows of one head; each warp owns kWarpRows of them from the first product to the
// store. Keys are walked as the concatenation [A | B] in steps of kBlockK, rows gathered one by one, so only the last
// step is partial. K and V tiles pass in turn, K0 V0 K1 V1 ..., through a ring of shared memory.
#pragma once
#include <cfloat>

#include "common/device.h"
#include "common/tile.h"
#include "forward/ampere/config.h"
#include "forward/params.h"

namespace ampere {

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile.
template <class C>
DEVICE uint32_t offset(uint32_t row, uint32_t chunk) {
    return row * C::kPitch + chunk * 16;
}

DEVICE const char* row_pointer(const Tensor& x, int i_head, int64_t row) {
    return static_cast<const char*>(x.data) + (i_head * x.head + row * x.row) * 2;
}

// A row in global memory; zeros are copied in the place of an invalid one.
struct Source {
    const char* row;
    bool valid;
};

// Query rows of a tile.
struct QueryRows {
    const char* first;
    int bytes, count;  // row stride, rows

    DEVICE QueryRows(const Tensor& q, const Tile& tile, int i_h)
        : first(row_pointer(q, i_h, tile.row)), bytes(static_cast<int>(q.row) * 2), count(tile.row_end - tile.row) {}

    DEVICE Source operator()(int i) const { return {first + static_cast<int64_t>(i) * bytes, i < count}; }
};

// Rows of K (or of V) that a tile walks: element i of [A | B], of which A may lie in a tensor of its own.
struct KeyRows {
    const char *in_a, *in_b;  // where element 0 would be if it were of A, of B
    int bytes_a, bytes_b;     // row strides
    int a_length, count;

    DEVICE KeyRows(const Tensor& tiv, const Tensor& own, const Tile& tile, int i_kh)
        : in_a(row_pointer(tiv, i_kh, tile.a)),
          in_b(row_pointer(own, i_kh, static_cast<int64_t>(tile.b) - (tile.a_end - tile.a))),
          bytes_a(static_cast<int>(tiv.row) * 2),
          bytes_b(static_cast<int>(own.row) * 2),
          a_length(tile.a_end - tile.a),
          count(a_length + tile.b_end - tile.b) {}

    DEVICE Source operator()(int i) const {
        const bool of_a = i < a_length;
        const char* origin = of_a ? in_a : in_b;
        return {origin + static_cast<int64_t>(i) * (of_a ? bytes_a : bytes_b), i < count};
    }
};

// Calls visit(row, chunk) for the part of a tile of kRows rows that is this thread's to copy.
template <class C, int kRows, class Visit>
DEVICE void visit_chunks(Visit visit) {
    constexpr int kLanes = C::kLanesPerRow;
    static_assert(kRows % (C::kThreads / kLanes) == 0);
#pragma unroll
    for (int r = 0; r < kRows; r += C::kThreads / kLanes) {
#pragma unroll
        for (int c = 0; c < C::kHeadDim / 8; c += kLanes) visit(r + threadIdx.x / kLanes, c + threadIdx.x % kLanes);
    }
}

// Copies rows [first, first + kRows) of `source` into a tile, asynchronously; columns from `columns` on become zeros.
template <class C, int kRows, class RowSource>
DEVICE void copy_tile(uint32_t tile, const RowSource& source, int first, int columns) {
    visit_chunks<C, kRows>([&](int row, int chunk) {
        const Source from = source(first + row);
        dev::cp_async_16(tile + offset<C>(row, chunk), from.row + chunk * 16, from.valid && chunk * 8 < columns);
    });
}

// Tiles of K and V in turn: K of step 0, V of step 0, K of step 1, ... A turn waits for its tile, and copies the tile
// of kRing - 1 turns later to where that of the turn before was.
template <class C>
struct KeyValueRing {
    const KeyRows* rows;  // of K, of V; in shared memory, since every register counts
    int count;            // of rows
    uint32_t slots;       // shared address
    int columns;
    uint32_t slot = 0;  // of the next turn

    static constexpr uint32_t kSlotBytes = C::kBlockK * C::kPitch;

    DEVICE void start() {
#pragma unroll
        for (int i = 0; i < C::kRing - 1; ++i) copy(i, i);
    }

    // The shared address of the tile of K (kOfV = 0) or V (1) of a step. All threads of the block take every turn
    // together.
    template <int kOfV>
    DEVICE uint32_t turn(int step) {
        dev::cp_async_wait<C::kRing - 2>();
        __syncthreads();
        copy(2 * step + kOfV + C::kRing - 1, slot == 0 ? C::kRing - 1 : slot - 1);
        const uint32_t tile = slots + slot * kSlotBytes;
        slot = slot + 1 == C::kRing ? 0 : slot + 1;
        return tile;
    }

  private:
    DEVICE void copy(int turn, uint32_t slot) {
        const int first = turn / 2 * C::kBlockK;
        if (first < count) copy_tile<C, C::kBlockK>(slots + slot * kSlotBytes, KeyRows(rows[turn % 2]), first, columns);
        dev::cp_async_commit();  // an empty group at the end, so that the count of pending ones stays true
    }
};

// Softmax(scale q k^T) v of the rows of one warp, step by step. Accumulators are those of m16n8k16: of each 16 x 8
// block a thread holds columns 2 (lane % 4) + {0, 1} of rows lane / 4 (elements 0, 1) and lane / 4 + 8 (elements 2, 3).
template <class C>
struct WarpSoftmax {
    using Element = typename C::Element;
    using Scores = float[C::kRowTiles][C::kBlockK / 8][4];

    uint32_t q_tile;  // shared address of the block's Q
    float scale;      // > 0, of scores in base 2
    uint32_t q[C::kKeepQ ? C::kRowTiles : 1][C::kKeepQ ? C::kHeadDim / 16 : 1][4];
    float out[C::kRowTiles][C::kHeadDim / 8][4];
    float max[C::kRowTiles][2];  // of raw scores
    float sum[C::kRowTiles][2];  // of this thread's columns

    DEVICE WarpSoftmax(uint32_t q_tile, float scale) : q_tile(q_tile), scale(scale) {
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
            max[m][0] = max[m][1] = dev::neg_inf();
            sum[m][0] = sum[m][1] = 0;
#pragma unroll
            for (int n = 0; n < C::kHeadDim / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) out[m][n][j] = 0;
            }
            if constexpr (C::kKeepQ) {
#pragma unroll
                for (int k = 0; k < C::kHeadDim / 16; ++k) load_q(q[m][k], m, k);
            }
        }
    }

    // One step over `keys` keys (kBlockK of them but for the last step).
    DEVICE void scores(Scores& s, uint32_t k_tile, int keys) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
            for (int n = 0; n < C::kBlockK / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) s[m][n][j] = 0;
            }
        }
#pragma unroll
        for (int k = 0; k < C::kHeadDim / 16; ++k) {
            uint32_t a[C::kRowTiles][4];
#pragma unroll
            for (int m = 0; m < C::kRowTiles; ++m) {
                if constexpr (C::kKeepQ) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) a[m][j] = q[m][k][j];
                } else {
                    load_q(a[m], m, k);
                }
            }
#pragma unroll
            for (int n = 0; n < C::kBlockK / 16; ++n) {
                uint32_t b[4];
                const int row = n * 16 + lane / 16 * 8 + lane % 8, chunk = k * 2 + lane / 8 % 2;
                dev::ldmatrix_x4(b, k_tile + offset<C>(row, chunk));
#pragma unroll
                for (int m = 0; m < C::kRowTiles; ++m) {
                    dev::mma_m16n8k16<Element>(s[m][2 * n], a[m], b[0], b[1]);
                    dev::mma_m16n8k16<Element>(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
        if (keys < C::kBlockK) {
#pragma unroll
            for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
                for (int n = 0; n < C::kBlockK / 8; ++n) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        if (n * 8 + lane % 4 * 2 + j % 2 >= keys) s[m][n][j] = dev::neg_inf();
                    }
                }
            }
        }
    }

    // Scores to weights, in place; what was summed up so far decays to the new maximum.
    DEVICE void weights(Scores& s) {
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float top = max[m][h];
#pragma unroll
                for (int n = 0; n < C::kBlockK / 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                top = fmaxf(top, dev::shfl_xor(top, 1));
                top = fmaxf(top, dev::shfl_xor(top, 2));
                const float shift = shift_of(top);
                const float decay = dev::ex2(max[m][h] * scale - shift);
                max[m][h] = top;
                sum[m][h] *= decay;
#pragma unroll
                for (int n = 0; n < C::kBlockK / 8; ++n) {
#pragma unroll
                    for (int j = 2 * h; j < 2 * h + 2; ++j) {
                        s[m][n][j] = dev::ex2(s[m][n][j] * scale - shift);
                        sum[m][h] += s[m][n][j];
                    }
                }
#pragma unroll
                for (int n = 0; n < C::kHeadDim / 8; ++n) {
                    out[m][n][2 * h] *= decay;
                    out[m][n][2 * h + 1] *= decay;
                }
            }
        }
    }

    DEVICE void add_values(const Scores& p, uint32_t v_tile) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < C::kBlockK / 16; ++k) {
            uint32_t a[C::kRowTiles][4];
#pragma unroll
            for (int m = 0; m < C::kRowTiles; ++m) dev::pack_operand<Element>(a[m], p[m][2 * k], p[m][2 * k + 1]);
#pragma unroll
            for (int n = 0; n < C::kHeadDim / 16; ++n) {
                uint32_t b[4];
                const int row = k * 16 + lane % 16, chunk = n * 2 + lane / 16;
                dev::ldmatrix_x4_trans(b, v_tile + offset<C>(row, chunk));
#pragma unroll
                for (int m = 0; m < C::kRowTiles; ++m) {
                    dev::mma_m16n8k16<Element>(out[m][2 * n], a[m], b[0], b[1]);
                    dev::mma_m16n8k16<Element>(out[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // Divides by the sums. A row that saw no key is left as zeros with an LSE (base 2) of -inf.
    DEVICE void finish(float (&lse)[C::kRowTiles][2]) {
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float total = sum[m][h];
                total += dev::shfl_xor(total, 1);
                total += dev::shfl_xor(total, 2);
                lse[m][h] = total == 0 ? dev::neg_inf() : shift_of(max[m][h]) + dev::lg2(total);
                const float factor = total == 0 ? 0 : 1 / total;
#pragma unroll
                for (int n = 0; n < C::kHeadDim / 8; ++n) {
                    out[m][n][2 * h] *= factor;
                    out[m][n][2 * h + 1] *= factor;
                }
            }
        }
    }

  private:
    // What exponents are lowered by. A maximum of -inf, where no key was seen, must not make them -inf - -inf.
    DEVICE float shift_of(float maximum) const { return maximum == dev::neg_inf() ? 0 : maximum * scale; }

    DEVICE void load_q(uint32_t (&a)[4], int m, int k) const {
        const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * C::kWarpRows + m * 16 + lane % 16;
        dev::ldmatrix_x4(a, q_tile + offset<C>(row, k * 2 + lane / 16));
    }
};

// Q with the sign of the scale, which leaves the scale positive: a maximum of scores is then one of scaled scores too.
// Each thread turns what it copied itself.
template <class C>
DEVICE void negate_q(uint8_t* q_tile) {
    visit_chunks<C, C::kBlockQ>([&](int row, int chunk) {
        uint4* x = reinterpret_cast<uint4*>(q_tile + offset<C>(row, chunk));
        constexpr uint32_t kSigns = 0x80008000;
        *x = {x->x ^ kSigns, x->y ^ kSigns, x->z ^ kSigns, x->w ^ kSigns};
    });
}

// The final result: each warp turns its fragments into whole rows where its rows of Q were.
template <class C>
DEVICE void store_rows(const ForwardParams& p, const WarpSoftmax<C>& state, const float (&lse)[C::kRowTiles][2],
                       uint8_t* q_tile, const Tile& tile, int i_h) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * C::kWarpRows;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first + m * 16 + h * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < C::kHeadDim / 8; ++n) {
                const float* pair = &state.out[m][n][2 * h];
                *reinterpret_cast<uint32_t*>(q_tile + offset<C>(row, n) + lane % 4 * 4) =
                    dev::pack<typename C::Element>(pair[0], pair[1]);
            }
            const int64_t i_row = tile.row + row;
            if (i_row < tile.row_end && lane % 4 == 0) p.lse[i_row * p.heads + i_h] = lse[m][h] * dev::kLn2;
        }
    }
    __syncwarp();
    constexpr int kLanes = C::kLanesPerRow;
    const int chunk = lane % kLanes;
#pragma unroll
    for (int row = first + lane / kLanes; row < first + C::kWarpRows; row += 32 / kLanes) {
        const int64_t i_row = tile.row + row;
        uint16_t* p_out = static_cast<uint16_t*>(p.out) + (i_row * p.heads + i_h) * p.head_dim;
#pragma unroll
        for (int c = chunk; c < C::kHeadDim / 8; c += kLanes) {
            if (i_row < tile.row_end && c * 8 < p.head_dim) {
                reinterpret_cast<uint4*>(p_out)[c] = *reinterpret_cast<const uint4*>(q_tile + offset<C>(row, c));
            }
        }
    }
}

// The result of one piece of a split tile, in float32; rows past the end of the tile are zeros that nobody reads.
template <class C>
DEVICE void store_partial(const ForwardParams& p, const WarpSoftmax<C>& state, const float (&lse)[C::kRowTiles][2],
                          int slot, int i_h) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * C::kWarpRows;
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first + m * 16 + h * 8 + lane / 4;
            const int64_t i_row = (static_cast<int64_t>(slot) * p.heads + i_h) * C::kBlockQ + row;
            float* p_out = p.part_out + i_row * p.head_dim;
#pragma unroll
            for (int n = 0; n < C::kHeadDim / 8; ++n) {
                const float* pair = &state.out[m][n][2 * h];
                if (n * 8 < p.head_dim) reinterpret_cast<float2*>(p_out)[n * 4 + lane % 4] = {pair[0], pair[1]};
            }
            if (lane % 4 == 0) p.part_lse[i_row] = lse[m][h];
        }
    }
}

// Block (tile, head), heads fastest: those that share keys run together.
template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksPerSm) forward(const __grid_constant__ ForwardParams p) {
    const int i_h = blockIdx.x % p.heads, i_kh = i_h / p.group;
    const Tile tile = load_tile(p.tiles, blockIdx.x / p.heads);
    uint8_t* q_bytes = dev::dynamic_shared();
    const uint32_t q_tile = dev::shared_address(q_bytes);

    copy_tile<C, C::kBlockQ>(q_tile, QueryRows(p.q, tile, i_h), 0, p.head_dim);
    dev::cp_async_commit();
    KeyRows* rows = reinterpret_cast<KeyRows*>(q_bytes + C::kTileBytes);
    static_assert(2 * sizeof(KeyRows) <= C::kSharedBytes - C::kTileBytes);
    if (threadIdx.x == 0) {
        rows[0] = KeyRows(p.k_tiv, p.k, tile, i_kh);
        rows[1] = KeyRows(p.v_tiv, p.v, tile, i_kh);
    }
    __syncthreads();
    const int count = tile.a_end - tile.a + tile.b_end - tile.b;
    KeyValueRing<C> ring{rows, count, q_tile + C::kBlockQ * C::kPitch, p.head_dim};
    ring.start();
    dev::cp_async_wait<C::kRing - 1>();
    if (p.scale < 0) negate_q<C>(q_bytes);
    __syncthreads();

    // The smallest positive scale stands for 0, which would make NaN of a masked score's -inf.
    WarpSoftmax<C> state(q_tile, fmaxf(fabsf(p.scale) * dev::kLog2E, FLT_MIN));
    const bool has_rows = threadIdx.x / 32 * C::kWarpRows < tile.row_end - tile.row;  // else this warp only copies
    for (int step = 0; step * C::kBlockK < count; ++step) {
        typename WarpSoftmax<C>::Scores s;
        const uint32_t k_tile = ring.template turn<0>(step);
        if (has_rows) {
            state.scores(s, k_tile, count - step * C::kBlockK);
            state.weights(s);
        }
        const uint32_t v_tile = ring.template turn<1>(step);
        if (has_rows) state.add_values(s, v_tile);
    }

    float lse[C::kRowTiles][2];
    state.finish(lse);
    if (tile.slot < 0) {
        store_rows(p, state, lse, q_bytes, tile, i_h);
    } else {
        store_partial(p, state, lse, tile.slot, i_h);
    }
}

}  // namespace ampere
