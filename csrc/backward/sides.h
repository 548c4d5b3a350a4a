// What the gradient kernels of all architectures share: which rows a block owns, which it walks, how they are copied
// and where results go.
//
// A side is a pair of matrices, (q, dout) or (k, v). A block owns rows of one side, X, and walks the rows of the other,
// Y. Every step is
//
//     S = X.first Y.first^T        dP = X.second Y.second^T        d(X.first) += dS Y.first
//
// and, where X are keys (S and P are the transposed ones then), d(X.second) += P Y.second. So dq by tiles of queries
// and dk, dv by tiles of keys are one kernel. No block adds to what another one wrote: gradients repeat bit for bit.
//
// A configuration C has Element, kOwner, kHeadDim (columns in shared memory; narrower heads are padded with zeros),
// kOwned, kWalked (rows per block and per step), kCopyThreads (threads 0 ... that copy) and, of a matrix of kRows rows
// in shared memory, in bytes, its size kBytes<kRows> and the place of eight columns at<kRows>(row, column).
#pragma once
#include "backward/params.h"
#include "common/device.h"
#include "common/tile.h"

namespace backward {

// One row of each of so many matrices; zeros are copied in the place of an invalid one.
template <int kMatrices>
struct Rows {
    const uint16_t* of[kMatrices];
    bool valid;
};

DEVICE const uint16_t* row_of(const Tensor& x, int row, int head) {
    return static_cast<const uint16_t*>(x.data) + row * x.row + head * x.head;
}

// Starts the copies of kRows rows of one matrix or two, the second behind the first; columns from `columns` on become
// zeros.
template <class C, int kRows, int kMatrices, class Source>
DEVICE void copy_rows(uint32_t to, int columns, const Source& source) {
    constexpr int kChunks = C::kHeadDim / 8, kRowsAtOnce = C::kCopyThreads / kChunks;
    static_assert(C::kCopyThreads % kChunks == 0 && kRows % kRowsAtOnce == 0, "a thread keeps to its columns");
    const int column = threadIdx.x % kChunks * 8;
#pragma unroll
    for (int j = 0; j < kRows / kRowsAtOnce; ++j) {
        const int row = threadIdx.x / kChunks + j * kRowsAtOnce;
        const Rows<kMatrices> from = source(row);
        const bool valid = from.valid && column < columns;
        const uint32_t at = to + C::template at<kRows>(row, column);
#pragma unroll
        for (int m = 0; m < kMatrices; ++m)
            dev::cp_async_16(at + m * C::template kBytes<kRows>, from.of[m] + column, valid);
    }
}

DEVICE int heads_of(Owner owner, const GradientParams& p) { return owner == Owner::keys ? p.heads / p.group : p.heads; }

// What a block owns: rows of a tile, of one head.
template <class C>
struct Place {
    int heads;  // of the side owned
    int head;
    Tile tile;

    DEVICE Place(const GradientParams& p, int head, const Tile& tile)
        : heads(heads_of(C::kOwner, p)), head(head), tile(tile) {}

    // Item i of this side. Heads run fastest: blocks that walk the same rows run together.
    DEVICE Place(const GradientParams& p, int i)
        : heads(heads_of(C::kOwner, p)),
          head(i % heads),
          tile(load_tile(C::kOwner == Owner::keys ? p.key_tiles : p.query_tiles, i / heads)) {}

    // Starts the copies of one matrix of the rows owned.
    template <bool kIsSecond>
    DEVICE void copy(const GradientParams& p, uint32_t to) const {
        const Tensor& x = C::kOwner == Owner::queries ? (kIsSecond ? p.dout : p.q)
                          : tile.in_tiv               ? (kIsSecond ? p.v_tiv : p.k_tiv)
                                                      : (kIsSecond ? p.v : p.k);
        copy_rows<C, C::kOwned, 1>(to, p.head_dim, [&](int i) -> Rows<1> {
            return {{row_of(x, tile.row + i, head)}, tile.row + i < tile.row_end};
        });
    }

    // LSE and delta of query `i` of the tile; of an absent one they make P zero.
    DEVICE float2 stats(const GradientParams& p, int i) const {
        const float* p_stats = p.stats + (static_cast<int64_t>(head) * p.rows + tile.row + i) * 2;
        return tile.row + i < tile.row_end ? *reinterpret_cast<const float2*>(p_stats)
                                           : make_float2(-dev::neg_inf(), 0.f);
    }
};

// What a block walks: [A | B] end to end, kWalked rows per step; where keys are owned, once for every query head of
// their group.
template <class C>
struct Walk {
    const GradientParams& p;
    int a, b, length_a, length;  // row i of [A | B] is row a + i of A if i < length_a, else row b + i of B
    int head, heads;             // of the next step; how many there are
    int start = 0;               // of the next step

    DEVICE Walk(const GradientParams& p, const Place<C>& place)
        : p(p), a(place.tile.a), length_a(place.tile.a_end - place.tile.a) {
        b = place.tile.b - length_a;
        length = place.tile.b_end - b;
        heads = C::kOwner == Owner::keys ? p.group : 1;
        head = C::kOwner == Owner::keys ? place.head * p.group : place.head / p.group;
    }

    DEVICE int steps() const { return (length + C::kWalked - 1) / C::kWalked * heads; }

    // Starts the copies of the next step: both matrices to `stage` and, of queries, their statistics to `stats`.
    DEVICE void copy_next(uint32_t stage, uint32_t stats) {
        static_assert(C::kOwner == Owner::queries || C::kWalked <= C::kCopyThreads,
                      "a thread for each row's statistics");
        copy_rows<C, C::kWalked, 2>(stage, p.head_dim, [&](int i) -> Rows<2> {
            const bool in_a = start + i < length_a, valid = i < length - start;
            const int row = row_number(start + i);
            if (C::kOwner == Owner::keys) return {{row_of(p.q, row, head), row_of(p.dout, row, head)}, valid};
            return {{row_of(in_a ? p.k_tiv : p.k, row, head), row_of(in_a ? p.v_tiv : p.v, row, head)}, valid};
        });
        if (C::kOwner == Owner::keys && threadIdx.x < C::kWalked) {
            const int i = start + threadIdx.x;
            const float* p_stats = p.stats + (static_cast<int64_t>(head) * p.rows + row_number(i)) * 2;
            dev::cp_async_8(stats + threadIdx.x * 8, p_stats, i < length);
        }
        start += C::kWalked;
        if (start >= length) {
            start = 0;
            ++head;
        }
    }

  private:
    DEVICE int row_number(int i) const { return i + (i < length_a ? a : b); }
};

// LSE and delta of the columns walked, where those are queries, from the statistics of a step: LSE, delta, LSE, delta
// of the two columns of block n of eight that a lane has elements of.
template <class C>
DEVICE float4 column_stats(const uint8_t* stats, int n) {
    if (C::kOwner == Owner::queries) return {};
    return *reinterpret_cast<const float4*>(stats + n * 64 + threadIdx.x % 4 * 16);
}

// P = exp2(scale S - LSE), in place, of 16 kRowTiles rows. element(m, n, j) is what the accumulators of mma and wgmma
// hold: of rows 16 m on and block n of eight columns, columns 2 (lane % 4) + j % 2 of row lane / 4 + j / 2 * 8.
//
// scale: carries log2(e). rows: LSE and delta of a lane's rows, where those are queries. valid: columns of the step.
template <class C, int kRowTiles, class Elements>
DEVICE void make_weights(const Elements& element, float scale, const float2 (&rows)[kRowTiles][2], const uint8_t* stats,
                         int valid) {
    constexpr bool kKeys = C::kOwner == Owner::keys;
#pragma unroll
    for (int n = 0; n < C::kWalked / 8; ++n) {
        const float4 columns = column_stats<C>(stats, n);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float lse = kKeys ? j % 2 ? columns.z : columns.x : rows[m][j / 2].x;
                element(m, n, j) = dev::ex2(element(m, n, j) * scale - lse);
            }
        }
    }
    // An absent query is all zeros, dout and delta too: whatever its P, it adds nothing. An absent key's P is
    // exp2(-LSE), which may be infinite.
    if (!kKeys && valid < C::kWalked) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
            for (int n = 0; n < C::kWalked / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (n * 8 + threadIdx.x % 4 * 2 + j % 2 >= valid) element(m, n, j) = 0;
                }
            }
        }
    }
}

// dS = P * (dP - delta), in the place of dP.
template <class C, int kRowTiles, class Elements, class Weights>
DEVICE void make_score_gradients(const Elements& element, const Weights& weight, const float2 (&rows)[kRowTiles][2],
                                 const uint8_t* stats) {
    constexpr bool kKeys = C::kOwner == Owner::keys;
#pragma unroll
    for (int n = 0; n < C::kWalked / 8; ++n) {
        const float4 columns = column_stats<C>(stats, n);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float delta = kKeys ? j % 2 ? columns.w : columns.y : rows[m][j / 2].y;
                element(m, n, j) = weight(m, n, j) * (element(m, n, j) - delta);
            }
        }
    }
}

// Writes 16 rows, from row `first` of the tile on, of `factor` times a gradient: to `whole` (rows, heads, head_dim) or,
// of a piece, to `part` (slots, heads, kOwned, head_dim), whose rows past the end of the tile nobody reads. element(n,
// j): as in make_weights.
template <class C, class Elements>
DEVICE void store(const GradientParams& p, const Place<C>& place, int first, float factor, void* whole, float* part,
                  const Elements& element) {
    const Tile& tile = place.tile;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + half * 8 + lane / 4;
        if (tile.row + row >= tile.row_end) continue;
        const int64_t i_row = tile.slot < 0
                                  ? static_cast<int64_t>(tile.row + row) * place.heads + place.head
                                  : (static_cast<int64_t>(tile.slot) * place.heads + place.head) * C::kOwned + row;
#pragma unroll
        for (int n = 0; n < C::kHeadDim / 8; ++n) {
            if (n * 8 >= p.head_dim) break;
            const int64_t at = i_row * p.head_dim + n * 8 + lane % 4 * 2;
            const float x = element(n, 2 * half) * factor, y = element(n, 2 * half + 1) * factor;
            if (tile.slot < 0) {
                *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(whole) + at) = dev::pack<typename C::Element>(x, y);
            } else {
                *reinterpret_cast<float2*>(part + at) = make_float2(x, y);
            }
        }
    }
}

// Both gradients of such rows, or dq alone.
template <class C, class First, class Second>
DEVICE void store_gradients(const GradientParams& p, const Place<C>& place, int first, const First& d_first,
                            const Second& d_second) {
    if (C::kOwner == Owner::queries) {
        store(p, place, first, p.scale, p.dq, p.part_dq, d_first);
    } else {
        store(p, place, first, p.scale, place.tile.in_tiv ? p.dk_tiv : p.dk, p.part_dk, d_first);
        store(p, place, first, 1, place.tile.in_tiv ? p.dv_tiv : p.dv, p.part_dv, d_second);
    }
}

}  // namespace backward
