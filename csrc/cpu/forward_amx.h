// Rows and keys of the forward as tiles have them, all of bfloat16: a group of one or two tiles of query rows over a
// block of keys.
//     S = Q K^T     P = exp2(c S - maximum), rounded to bfloat16     O += P V
// Rows of scores and weights are rows of tiles, keys lie in lanes.

constexpr int64_t BLOCK_KEYS = 256;
constexpr int64_t KEY_STEP = TILE_DEPTH;  // ranges of keys begin at multiples, since no tile holds two of them

// As in forward.h.
constexpr int64_t FEW_ROWS = TILE / 2;
constexpr int64_t ROWS_TOGETHER = 16 * TILE;

constexpr int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }
constexpr int64_t depth_tiles(int64_t columns) { return (columns + TILE_DEPTH - 1) / TILE_DEPTH; }

// Streaming softmax of a tile of rows: maximum and sum in base 2, and sums of values (rows, columns).
struct State {
    float *peak, *total, *sums;

    static int64_t size(int64_t columns) { return (columns + 2) * TILE; }

    explicit State(float* p) : peak(p), total(p + TILE), sums(p + 2 * TILE) {}
    void clear(int64_t columns) const {
        store(peak, splat(-__builtin_inff()));
        clear_floats(total, (columns + 1) * TILE);
    }
};

// 16 x 16 numbers of four bytes, transposed.
TIVTOK_INLINE void transpose_tile(Vec (&x)[TILE]) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        Vec quad[4] = {x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]};
        transpose_quads(quad);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) x[4 * g + i] = quad[i];
    }
#define TIVTOK_FIRST 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define TIVTOK_LAST 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define TIVTOK_EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define TIVTOK_ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
    Vec y[TILE];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const Vec a = TIVTOK_SHUFFLE(x[i], x[4 + i], TIVTOK_FIRST), b = TIVTOK_SHUFFLE(x[i], x[4 + i], TIVTOK_LAST);
        const Vec c = TIVTOK_SHUFFLE(x[8 + i], x[12 + i], TIVTOK_FIRST);
        const Vec d = TIVTOK_SHUFFLE(x[8 + i], x[12 + i], TIVTOK_LAST);
        y[i] = TIVTOK_SHUFFLE(a, c, TIVTOK_EVEN), y[4 + i] = TIVTOK_SHUFFLE(a, c, TIVTOK_ODD);
        y[8 + i] = TIVTOK_SHUFFLE(b, d, TIVTOK_EVEN), y[12 + i] = TIVTOK_SHUFFLE(b, d, TIVTOK_ODD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++) x[i] = y[i];
}

// Lane r: all lanes of x[r], put together by `op`. Overwrites x.
template <int H, class Op>
TIVTOK_INLINE void fold_rows(Vec (&x)[TILE], const Op& op) {
#define TIVTOK_KEEP(l) ((l) & H ? 16 + (l) : (l))
#define TIVTOK_SWAP(l) ((l) & H ? 16 + (l) - H : (l) + H)
#define TIVTOK_ALL(f) \
    f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#pragma GCC unroll 8
    for (int i = 0; i < H; i++)
        x[i] = op(TIVTOK_SHUFFLE(x[i], x[i + H], TIVTOK_ALL(TIVTOK_KEEP)),
                  TIVTOK_SHUFFLE(x[i], x[i + H], TIVTOK_ALL(TIVTOK_SWAP)));
    if constexpr (H > 1) fold_rows<H / 2>(x, op);
}

// What `fold_rows` makes of (rows, 16) numbers; rows past the last are `nothing`.
template <class Op>
TIVTOK_INLINE Vec reduce_rows(const float* rows, const Op& op) {
    Vec x[TILE];
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) x[r] = load(rows + r * TILE);
    fold_rows<TILE / 2>(x, op);
    return x[0];
}

// 2^x for x up to 0 and a little more, relative error 1.5e-7, 0 far below. NaN stays NaN.
TIVTOK_INLINE Vec weight(Vec x) {
#if defined(__AVX512DQ__)
    const Vec f = _mm512_reduce_ps(x, 0x09);  // x - floor(x), a minimax polynomial on [0, 1)
    Vec p = splat(0x1.e974fcp-10f);
    p = p * f + splat(0x1.277854p-7f);
    p = p * f + splat(0x1.c91ce6p-5f);
    p = p * f + splat(0x1.ebdb56p-3f);
    p = p * f + splat(0x1.62e4bap-1f);
    p = p * f + splat(1.f);
    return _mm512_scalef_ps(p, x);
#else
    return exp2(x);
#endif
}

// 32 numbers as bfloat16.
TIVTOK_INLINE void store_weights(Vec first, Vec second, float* to) {
#if defined(__AVX512BF16__)
    const auto halves = _mm512_cvtne2ps_pbh(second, first);
    __builtin_memcpy(to, &halves, sizeof halves);
#else
    narrow(first, reinterpret_cast<BFloat16*>(to));
    narrow(second, reinterpret_cast<BFloat16*>(to) + LANES);
#endif
}

// Up to `count` rows of up to `columns` numbers, zeros in the place of all others.
template <int ROWS_, int COLUMNS>
struct Edge {
    BFloat16 rows[ROWS_][COLUMNS];

    Edge(const BFloat16* from, int64_t stride, int64_t count, int64_t columns) : rows{} {
        const int64_t width = columns < COLUMNS ? columns : COLUMNS;
        for (int64_t r = 0; r < ROWS_ && r < count && width > 0; r++)
            __builtin_memcpy(rows[r], from + r * stride, width * sizeof(BFloat16));
    }
};

// 16 rows of 32 numbers -> the right tile of a product that sums over the columns.
TIVTOK_INLINE void pack_transposed(const BFloat16* rows, int64_t stride, float* to) {
    Vec x[TILE];
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) __builtin_memcpy(&x[r], rows + r * stride, sizeof x[r]);
    transpose_tile(x);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) store(to + r * TILE, x[r]);
}

// 32 rows of 16 numbers -> the right tile of a product that sums over the rows.
TIVTOK_INLINE void pack_pairs(const BFloat16* rows, int64_t stride, float* to) {
    for (int r = 0; r < TILE; r++, rows += 2 * stride) {
        Lanes<Vec>::Halves even, odd;
        __builtin_memcpy(&even, rows, sizeof even);
        __builtin_memcpy(&odd, rows + stride, sizeof odd);
        typedef Lanes<Vec>::Bits Bits;
        store(to + r * TILE, (Vec)(__builtin_convertvector(even, Bits) | __builtin_convertvector(odd, Bits) << 16));
    }
}

// Packed keys and values of a head. `held` keys at its start may be followed by a gap up to the next KEY_STEP.
struct KeyBlock {
    float *keys, *values;
    int64_t columns, held;

    static int64_t size(int64_t columns) {
        return BLOCK_KEYS / TILE_DEPTH * (2 * depth_tiles(columns) + columns / TILE) * TILE_FLOATS;
    }

    KeyBlock(float* p, int64_t columns, int64_t held)
        : keys(p),
          values(p + BLOCK_KEYS / TILE * depth_tiles(columns) * TILE_FLOATS),
          columns(columns),
          held(held) {}

    // 16 keys from `key` on, their columns [32 depth, 32 depth + 32).
    float* key_tile(int64_t key, int64_t depth) const {
        return keys + (key / TILE * depth_tiles(columns) + depth) * TILE_FLOATS;
    }
    // 32 values from `key` on, 16 columns of them.
    float* value_tile(int64_t key, int64_t column) const {
        return values + (key / TILE_DEPTH * (columns / TILE) + column / TILE) * TILE_FLOATS;
    }

    // Rows [first, first + count) of a head become keys from `key` on, and zeros up to the next KEY_STEP.
    void pack(const Shape& shape, const Tensor& k, const Tensor& v, int64_t head, int64_t first, int64_t count,
              int64_t key) const {
        const BFloat16* from = row_of<BFloat16>(k, first, head);
        for (int64_t i = 0; i < round_up(count, KEY_STEP); i += TILE, from += TILE * k.row)
            for (int64_t c = 0; c < shape.head_dim; c += TILE_DEPTH) {
                float* const to = key_tile(key + i, c / TILE_DEPTH);
                if (count - i >= TILE && shape.head_dim - c >= TILE_DEPTH)
                    pack_transposed(from + c, k.row, to);
                else
                    pack_transposed(Edge<TILE, TILE_DEPTH>(from + c, k.row, count - i, shape.head_dim - c).rows[0],
                                    TILE_DEPTH, to);
            }
        from = row_of<BFloat16>(v, first, head);
        for (int64_t i = 0; i < count; i += TILE_DEPTH, from += TILE_DEPTH * v.row)
            for (int64_t c = 0; c < shape.head_dim; c += TILE) {
                float* const to = value_tile(key + i, c);
                if (count - i >= TILE_DEPTH && shape.head_dim - c >= TILE)
                    pack_pairs(from + c, v.row, to);
                else
                    pack_pairs(Edge<TILE_DEPTH, TILE>(from + c, v.row, count - i, shape.head_dim - c).rows[0], TILE,
                               to);
            }
    }
};

// Floats of a group's scores of a block: (2, BLOCK_KEYS / 16) tiles. Weights take the place of the first half of a
// tile row's scores.
TIVTOK_INLINE int64_t scores_size() { return 2 * BLOCK_KEYS * TILE; }

TIVTOK_INLINE Vec finite_peak(Vec peak) { return select(peak > splat(-__builtin_inff()), peak, Vec{}); }

// Scores of R tiles of rows and of 32 keys.
template <int R>
TIVTOK_INLINE void multiply_keys(const float* queries, const KeyBlock& block, int64_t key, float* scores) {
    const int64_t depth = depth_tiles(block.columns);
    clear_tile<0>(), clear_tile<1>();
    if (R == 2) clear_tile<2>(), clear_tile<3>();
    for (int64_t d = 0; d < depth; d++) {
        load_tile<6>(block.key_tile(key, d)), load_tile<4>(queries + d * TILE_FLOATS), multiply_tiles<0, 4, 6>();
        load_tile<7>(block.key_tile(key + TILE, d)), multiply_tiles<1, 4, 7>();
        if (R == 1) continue;
        load_tile<5>(queries + (depth + d) * TILE_FLOATS), multiply_tiles<2, 5, 6>(), multiply_tiles<3, 5, 7>();
    }
    store_tile<0>(scores), store_tile<1>(scores + TILE_FLOATS);
    if (R == 1) return;
    scores += BLOCK_KEYS * TILE;
    store_tile<2>(scores), store_tile<3>(scores + TILE_FLOATS);
}

// Scores of keys [from, end) among the `rows` rows of a tile become -inf; both are in the same 32.
TIVTOK_INLINE void hide_keys(float* scores, int64_t from, int64_t rows) {
    const int64_t end = round_up(from, KEY_STEP);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = from; k < end; k++) scores[k / TILE * TILE_FLOATS + r * TILE + k % TILE] = -__builtin_inff();
}

// Scores of `count` keys become weights, in place, of up to 16 rows.
TIVTOK_INLINE void weigh(float* scores, int64_t count, int64_t rows, int64_t columns, float c, const State& state,
                         bool fresh, Ahead& ahead) {
    float parts[TILE_FLOATS] __attribute__((aligned(64)));
    for (int64_t r = 0; r < TILE; r++) store(parts + r * TILE, splat(-__builtin_inff()));
    const int64_t vectors = tiles_of(count);
    for (int64_t r = 0; r < rows; r++) {
        const float* s = scores + r * TILE;
        Vec even = load(s), odd = even;
        int64_t t = 1;
        for (; t + 2 <= vectors; t += 2)
            odd = max(load(s + t * TILE_FLOATS), odd), even = max(load(s + (t + 1) * TILE_FLOATS), even);
        if (t < vectors) odd = max(load(s + t * TILE_FLOATS), odd);
        store(parts + r * TILE, max(odd, even));
    }
    const auto larger = [](Vec x, Vec y) { return max(x, y); };
    const Vec before = fresh ? splat(-__builtin_inff()) : load(state.peak);
    const Vec now = max(reduce_rows(parts, larger) * c, before), base = finite_peak(now);
    const Vec decay = exp2(before - base);
    store(state.peak, now);

    float bases[TILE] __attribute__((aligned(64)));
    store(bases, base);
    for (int64_t r = 0; r < TILE; r++) store(parts + r * TILE, Vec{});
    for (int64_t r = 0; r < rows; r++) {
        ahead.ask();
        const float* s = scores + r * TILE;
        float* to = scores + r * TILE;
        const Vec row_base = splat(bases[r]);
        Vec even = Vec{}, odd = Vec{};
        int64_t t = 0;
        for (; t + 2 <= vectors; t += 2, s += 2 * TILE_FLOATS, to += TILE_FLOATS) {
            const Vec first = weight(load(s) * c - row_base), second = weight(load(s + TILE_FLOATS) * c - row_base);
            even += first, odd += second;
            store_weights(first, second, to);
        }
        if (t < vectors) {
            const Vec first = weight(load(s) * c - row_base);
            even += first;
            store_weights(first, Vec{}, to);
        }
        store(parts + r * TILE, even + odd);
    }
    const Vec total = reduce_rows(parts, [](Vec x, Vec y) { return x + y; });
    store(state.total, fresh ? total : load(state.total) * decay + total);
    if (fresh) return;
    float decays[TILE] __attribute__((aligned(64)));
    store(decays, decay);
    for (int64_t r = 0; r < rows; r++) {
        if (decays[r] == 1.f) continue;
        const Vec row_decay = splat(decays[r]);
        for (int64_t column = 0; column < columns; column += LANES) {
            float* const to = state.sums + r * columns + column;
            store(to, load(to) * row_decay);
        }
    }
}

// Adds weights of R tiles of rows times N tiles of columns of the values.
template <int R, int N>
TIVTOK_INLINE void multiply_values(const float* weights, const KeyBlock& block, int64_t first, int64_t count,
                                   int64_t column, float* sums, bool fresh) {
    const int64_t stride = block.columns * sizeof(float), next = State::size(block.columns);
    sums += column;
    if (fresh) {
        clear_tile<0>(), clear_tile<1>();
        if (R == 2) clear_tile<2>(), clear_tile<3>();
    } else {
        load_tile<0>(sums, stride);
        if (N == 2) load_tile<1>(sums + TILE, stride);
        if (R == 2) load_tile<2>(sums + next, stride);
        if (R == 2 && N == 2) load_tile<3>(sums + next + TILE, stride);
    }
    for (int64_t k = 0; k < count; k += TILE_DEPTH, weights += TILE_FLOATS) {
        load_tile<6>(block.value_tile(first + k, column)), load_tile<4>(weights), multiply_tiles<0, 4, 6>();
        if (N == 2) load_tile<7>(block.value_tile(first + k, column + TILE)), multiply_tiles<1, 4, 7>();
        if (R == 1) continue;
        load_tile<5>(weights + BLOCK_KEYS * TILE), multiply_tiles<2, 5, 6>();
        if (N == 2) multiply_tiles<3, 5, 7>();
    }
    store_tile<0>(sums, stride);
    if (N == 2) store_tile<1>(sums + TILE, stride);
    if (R == 2) store_tile<2>(sums + next, stride);
    if (R == 2 && N == 2) store_tile<3>(sums + next + TILE, stride);
}

// Adds keys [first, end) of a block to the states of R tiles of rows, or makes them of these keys. `c` >= 0 brings
// scores to base 2.
template <int R>
__attribute__((noinline)) void attend(const float* queries, const KeyBlock& block, int64_t first, int64_t end,
                                      int64_t rows, float c, float* states, bool fresh, Ahead& ahead, float* scores) {
    const int64_t count = end - first, columns = block.columns, next = State::size(columns);
    for (int64_t k = 0; k < count; k += TILE_DEPTH)
        multiply_keys<R>(queries, block, first + k, scores + k / TILE * TILE_FLOATS);
    for (int64_t t = 0; t < R; t++) {
        float* const own = scores + t * BLOCK_KEYS * TILE;
        const int64_t size = rows - t * TILE < TILE ? rows - t * TILE : TILE;
        if (first == 0 && block.held < end) hide_keys(own, block.held, size);
        hide_keys(own, count, size);
        weigh(own, count, size, columns, c, State(states + t * next), fresh, ahead);
    }
    int64_t column = 0;
    float* const sums = State(states).sums;
    for (; column + 2 * TILE <= columns; column += 2 * TILE)
        multiply_values<R, 2>(scores, block, first, count, column, sums, fresh);
    if (column < columns) multiply_values<R, 1>(scores, block, first, count, column, sums, fresh);
}

// Query rows of some heads, packed tile by tile, and their states.
class QueryRows {
  public:
    static int64_t scratch(int64_t rows, int64_t heads, int64_t columns, bool with_states) {
        const int64_t queries = tiles_of(rows) * depth_tiles(columns) * TILE_FLOATS;
        return heads * (queries + (with_states ? states_size(rows, columns) : 0));
    }
    static int64_t states_size(int64_t rows, int64_t columns) { return tiles_of(rows) * State::size(columns); }

    QueryRows(int64_t rows, int64_t heads, int64_t columns, float* queries)
        : rows_(rows), heads_(heads), columns_(columns), queries_(queries) {}

    // `fresh`: they have seen no key, and what lies there means nothing.
    void use_states(float* states, int64_t head_stride, bool fresh) {
        states_ = states, head_stride_ = head_stride, fresh_ = fresh;
    }

    void pack(const Shape& shape, const Tensor& q, int64_t first_head, int64_t row, float sign) {
        const IVec flip = IVec{} + static_cast<int32_t>(sign < 0 ? 0x80008000 : 0);
        for_tiles(1, [&](int64_t h, int64_t t) {
            const BFloat16* const from = row_of<BFloat16>(q, row + t * TILE, first_head + h);
            for (int64_t c = 0; c < shape.head_dim; c += TILE_DEPTH) {
                const bool whole = size(t) == TILE && shape.head_dim - c >= TILE_DEPTH;
                float* const to = queries(h, t) + c / TILE_DEPTH * TILE_FLOATS;
                if (whole)
                    copy_tile(from + c, q.row, flip, to);
                else
                    copy_tile(Edge<TILE, TILE_DEPTH>(from + c, q.row, size(t), shape.head_dim - c).rows[0], TILE_DEPTH,
                              flip, to);
            }
        });
    }

    void attend_all(const KeyBlock& block, int64_t first, int64_t end, float c, Ahead& ahead, float* scores) {
        if (first >= end) return;
        for_tiles(2, [&](int64_t h, int64_t t) {
            const int64_t rows = rows_ - t * TILE;
            const auto run = rows > TILE ? attend<2> : attend<1>;
            run(queries(h, t), block, first, end, rows, c, state(h, t), fresh_, ahead, scores);
        });
        fresh_ = false;
    }

    void finish_all(const ForwardParams& params, int64_t first_head, int64_t row) {
        clear_unseen();
        for_tiles(1, [&](int64_t h, int64_t t) { finish(params, State(state(h, t)), row + t * TILE, size(t), first_head + h); });
    }

    // How often `attend_all` asks for what is needed next, with any number of keys.
    int64_t tiles(int64_t) const { return heads_ * rows_; }

    // States of rows that have seen no key.
    void clear_unseen() {
        if (fresh_) for_tiles(1, [&](int64_t h, int64_t t) { State(state(h, t)).clear(columns_); });
        fresh_ = false;
    }

    // Takes over the states of `few` rows of one tile, which are these from row `first` on.
    void take_states(const QueryRows& few, int64_t first) {
        for (int64_t h = 0; h < heads_; h++)
            for (int64_t r = 0; r < few.rows_; r++) {
                const State from(few.state(h, 0)), to(state(h, (first + r) / TILE));
                const int64_t at = (first + r) % TILE;
                to.peak[at] = from.peak[r], to.total[at] = from.total[r];
                __builtin_memcpy(to.sums + at * columns_, from.sums + r * columns_, columns_ * sizeof(float));
            }
        fresh_ = false;
    }

    // Adds what other rows' states hold to these.
    void join(const QueryRows& other) const {
        for_tiles(1, [&](int64_t h, int64_t t) {
            const State into(state(h, t)), from(other.state(h, t));
            const Vec a = load(into.peak), b = load(from.peak), now = max(a, b), base = finite_peak(now);
            float weight_a[TILE], weight_b[TILE];
            store(weight_a, exp2(a - base)), store(weight_b, exp2(b - base));
            store(into.peak, now);
            store(into.total, load(into.total) * load(weight_a) + load(from.total) * load(weight_b));
            for (int64_t i = 0; i < TILE * columns_; i += LANES) {
                const Vec of_a = splat(weight_a[i / columns_]), of_b = splat(weight_b[i / columns_]);
                store(into.sums + i, load(into.sums + i) * of_a + load(from.sums + i) * of_b);
            }
        });
    }

  private:
    static void copy_tile(const BFloat16* from, int64_t stride, IVec flip, float* to) {
#pragma GCC unroll 16
        for (int r = 0; r < TILE; r++) {
            IVec x;
            __builtin_memcpy(&x, from + r * stride, sizeof x);
            store(to + r * TILE, (Vec)(x ^ flip));
        }
    }

    // Writes out and LSE of a tile of `count` rows.
    void finish(const ForwardParams& params, const State& state, int64_t row, int64_t count, int64_t head) const {
        const Shape& shape = params.shape;
        const Vec peak = load(state.peak), total = load(state.total);
        const Vec all_hidden = splat(__builtin_nanf(""));  // no score above -inf: 0 / 0, as softmax has it
        float inverse[TILE], lse[TILE];
        store(inverse, select(peak > splat(-__builtin_inff()), 1.f / total, all_hidden));
        store(lse, (peak + log2(total)) * splat(0.6931471805599453f));
        for (int64_t r = 0; r < count; r++) {
            const float* const sums = state.sums + r * columns_;
            BFloat16* const out =
                static_cast<BFloat16*>(params.out) + ((row + r) * shape.heads + head) * shape.head_dim;
            for (int64_t c = 0; c < shape.head_dim; c += PANEL)
                narrow_panel(sums + c, inverse[r], shape.head_dim - c, out + c);
            if (params.lse) params.lse[(row + r) * shape.heads + head] = lse[r];
        }
    }

    // Calls body(head, tile) for every tile of rows that is the first of `step`.
    template <class Body>
    void for_tiles(int64_t step, const Body& body) const {
        for (int64_t h = 0; h < heads_; h++)
            for (int64_t t = 0; t < tiles_of(rows_); t += step) body(h, t);
    }

    int64_t size(int64_t t) const { return rows_ - t * TILE < TILE ? rows_ - t * TILE : TILE; }
    float* state(int64_t h, int64_t t) const { return states_ + h * head_stride_ + t * State::size(columns_); }
    float* queries(int64_t h, int64_t t) const {
        return queries_ + (h * tiles_of(rows_) + t) * depth_tiles(columns_) * TILE_FLOATS;
    }

    int64_t rows_, heads_, columns_;
    float *queries_, *states_ = nullptr;
    int64_t head_stride_ = 0;
    bool fresh_ = true;
};
