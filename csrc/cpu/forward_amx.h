// The forward with tile registers, all of bfloat16: a group of one or two tiles of query rows over a block of keys.
//     S = Q K^T     P = exp2(c S - maximum), rounded to bfloat16     O += P V
// Query rows lie in the rows of tiles, keys in lanes. Products take turns with vectors (docs/kernels/cpu.md).

// As in forward.h.
constexpr int64_t FEW_ROWS = TILE / 2;
constexpr int64_t ROWS_TOGETHER = 16 * TILE;

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

// What `fold_rows` makes of (16, 16) numbers.
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

// Positive numbers as bfloat16, to nearest: pairs of a number of each vector. Ties go up; a NaN may be lost, of which
// the sum of weights tells. The instruction for it takes longer.
TIVTOK_INLINE Vec round_pairs(Vec first, Vec second) {
    typedef Lanes<Vec>::Bits Bits;
    return (Vec)(((Bits)first + 0x8000) >> 16 | (((Bits)second + 0x8000) & 0xffff0000));
}

// Floats of a tile of rows' scores, (BLOCK_KEYS / 16) tiles, and of its weights, (BLOCK_KEYS / 32) tiles. Weights lie
// half a tile off: a load waits for a store before it if their addresses end in the same 12 bits.
constexpr int64_t SCORES = BLOCK_KEYS * TILE, WEIGHTS = SCORES / 2, OFF = TILE_FLOATS / 2;

TIVTOK_INLINE int64_t scores_size() { return 2 * (SCORES + WEIGHTS) + TILE_FLOATS; }

TIVTOK_INLINE Vec finite_peak(Vec peak) { return select(peak > splat(-__builtin_inff()), peak, Vec{}); }

// A group of up to two tiles of rows, over keys [first, end) of a block. `fresh`: the rows have seen no key.
struct Step {
    const float* queries;
    float* states;
    int64_t rows;  // from the group's first on
    const KeyBlock* block;
    int64_t first, end;
    bool fresh;
    float* scores;

    float* weights() const { return scores + 2 * SCORES + OFF; }
    int64_t count() const { return end - first; }
    int64_t size(int64_t tile) const { return rows - tile * TILE < TILE ? rows - tile * TILE : TILE; }
    State state(int64_t tile) const { return State(states + tile * State::size(block->columns)); }
};

// Scores of R tiles of rows and of 32 keys, the first of which is `key` among the step's.
template <int R>
void multiply_keys(const Step& step, int64_t key) {
    const int64_t depth = depth_tiles(step.block->columns);
    const float* const queries = step.queries;
    const float* const keys = step.block->key_tile(step.first + key, 0);
    clear_tile<0>(), clear_tile<1>();
    if (R == 2) clear_tile<2>(), clear_tile<3>();
    for (int64_t d = 0; d < depth; d++) {
        load_tile<6>(keys + d * TILE_FLOATS), load_tile<4>(queries + d * TILE_FLOATS), multiply_tiles<0, 4, 6>();
        load_tile<7>(keys + (depth + d) * TILE_FLOATS), multiply_tiles<1, 4, 7>();
        if (R == 1) continue;
        load_tile<5>(queries + (depth + d) * TILE_FLOATS), multiply_tiles<2, 5, 6>(), multiply_tiles<3, 5, 7>();
    }
    float* const scores = step.scores + key / TILE * TILE_FLOATS;
    store_tile<0>(scores), store_tile<1>(scores + TILE_FLOATS);
    if (R == 2) store_tile<2>(scores + SCORES), store_tile<3>(scores + SCORES + TILE_FLOATS);
}

// Adds weights of R tiles of rows times N tiles of columns of the values.
template <int R, int N>
void multiply_values(const Step& step, int64_t column) {
    const KeyBlock& block = *step.block;
    const int64_t stride = block.columns * sizeof(float), next = State::size(block.columns);
    const int64_t value_stride = block.columns / TILE * TILE_FLOATS;
    float* const sums = State(step.states).sums + column;
    const float *weights = step.weights(), *values = block.value_tile(step.first, column);
    if (step.fresh) {
        clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
    } else {
        load_tile<0>(sums, stride);
        if (N == 2) load_tile<1>(sums + TILE, stride);
        if (R == 2) load_tile<2>(sums + next, stride);
        if (R == 2 && N == 2) load_tile<3>(sums + next + TILE, stride);
    }
    for (int64_t k = 0; k < step.count(); k += TILE_DEPTH, weights += TILE_FLOATS, values += value_stride) {
        load_tile<6>(values), load_tile<4>(weights), multiply_tiles<0, 4, 6>();
        if (N == 2) load_tile<7>(values + TILE_FLOATS), multiply_tiles<1, 4, 7>();
        if (R == 1) continue;
        load_tile<5>(weights + WEIGHTS), multiply_tiles<2, 5, 6>();
        if (N == 2) multiply_tiles<3, 5, 7>();
    }
    store_tile<0>(sums, stride);
    if (N == 2) store_tile<1>(sums + TILE, stride);
    if (R == 2) store_tile<2>(sums + next, stride);
    if (R == 2 && N == 2) store_tile<3>(sums + next + TILE, stride);
}

// Scores of keys [from, end of their KEY_STEP) among the `rows` rows of a tile become -inf.
TIVTOK_INLINE void hide_keys(float* scores, int64_t from, int64_t rows) {
    const int64_t end = round_up(from, KEY_STEP);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = from; k < end; k++) scores[k / TILE * TILE_FLOATS + r * TILE + k % TILE] = -__builtin_inff();
}

// What a step makes of a tile of rows before its weights: per row what is subtracted from exponents, what sums shrink
// by, and places for sums of weights.
struct Statistics {
    float bases[TILE], decays[TILE], totals[TILE_FLOATS];
} __attribute__((aligned(64)));

// The maxima of a tile of rows.
TIVTOK_INLINE void find_peaks(const Step& step, int64_t tile, float c, Statistics& statistics) {
    const int64_t rows = step.size(tile), count = step.count(), vectors = tiles_of(count);
    float* const scores = step.scores + tile * SCORES;
    const int64_t held = step.block->held;
    if (held % KEY_STEP && step.first < held && held < step.end) hide_keys(scores, held - step.first, rows);
    if (count % KEY_STEP) hide_keys(scores, count, rows);
    float* const peaks = statistics.totals;
    for (int64_t r = rows; r < TILE; r++) store(peaks + r * TILE, Vec{});
    for (int64_t r = 0; r < rows; r++) {
        const float* s = scores + r * TILE;
        Vec even = load(s), odd = even;
        int64_t t = 1;
        for (; t + 2 <= vectors; t += 2)
            odd = max(load(s + t * TILE_FLOATS), odd), even = max(load(s + (t + 1) * TILE_FLOATS), even);
        if (t < vectors) odd = max(load(s + t * TILE_FLOATS), odd);
        store(peaks + r * TILE, max(odd, even));
    }
    const State state = step.state(tile);
    const Vec before = step.fresh ? splat(-__builtin_inff()) : load(state.peak);
    const Vec now = max(reduce_rows(peaks, [](Vec x, Vec y) { return max(x, y); }) * c, before);
    const Vec base = finite_peak(now);
    store(state.peak, now), store(statistics.bases, base), store(statistics.decays, exp2(before - base));
}

// Weights of row `r` of a tile.
TIVTOK_INLINE void weigh_row(const Step& step, int64_t tile, int64_t r, float c, Statistics& statistics) {
    const int64_t vectors = tiles_of(step.count());
    const float* s = step.scores + tile * SCORES + r * TILE;
    float* to = step.weights() + tile * WEIGHTS + r * TILE;
    const Vec base = splat(statistics.bases[r]);
    Vec even = Vec{}, odd = Vec{};
    int64_t t = 0;
    for (; t + 2 <= vectors; t += 2, s += 2 * TILE_FLOATS, to += TILE_FLOATS) {
        const Vec first = weight(load(s) * c - base), second = weight(load(s + TILE_FLOATS) * c - base);
        even += first, odd += second;
        store(to, round_pairs(first, second));
    }
    if (t < vectors) {
        const Vec first = weight(load(s) * c - base);
        even += first;
        store(to, round_pairs(first, Vec{}));
    }
    store(statistics.totals + r * TILE, even + odd);
}

// Adds the weights of a tile of rows up, and shrinks what earlier keys left.
TIVTOK_INLINE void add_totals(const Step& step, int64_t tile, Statistics& statistics) {
    const State state = step.state(tile);
    const int64_t columns = step.block->columns, size = step.size(tile);
    for (int64_t r = size; r < TILE; r++) store(statistics.totals + r * TILE, Vec{});
    const Vec total = reduce_rows(statistics.totals, [](Vec x, Vec y) { return x + y; });
    if (step.fresh) return store(state.total, total);
    const Vec decay = load(statistics.decays);
    store(state.total, load(state.total) * decay + total);
    if (sum((Vec)((decay != splat(1.f)) & (IVec)splat(1.f))) == 0.f) return;
    for (int64_t r = 0; r < size; r++) {
        const Vec row_decay = splat(statistics.decays[r]);
        for (int64_t c = 0; c < columns; c += LANES) {
            float* const to = state.sums + r * columns + c;
            store(to, load(to) * row_decay);
        }
    }
}

// Adds the keys of a step to the states of R tiles of rows, or makes them of these. `c` >= 0 brings scores to base 2.
template <int R>
void attend(const Step& step, float c, Ahead& ahead) {
    for (int64_t k = 0; k < step.count(); k += TILE_DEPTH) multiply_keys<R>(step, k);
    if (c == 0.f) {  // which would make NaN of hidden scores
        for (int64_t i = 0; i < R * SCORES; i += LANES) store(step.scores + i, load(step.scores + i) * c);
        c = 1.f;
    }
    Statistics statistics[R];
    for (int64_t t = 0; t < R; t++) find_peaks(step, t, c, statistics[t]);
    for (int64_t t = 0; t < R; t++) {
        for (int64_t r = 0; r < step.size(t); r++) {
            ahead.ask();
            weigh_row(step, t, r, c, statistics[t]);
        }
        add_totals(step, t, statistics[t]);
    }
    int64_t column = 0;
    for (; column + 2 * TILE <= step.block->columns; column += 2 * TILE) multiply_values<R, 2>(step, column);
    if (column < step.block->columns) multiply_values<R, 1>(step, column);
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
                    pack_rows_as_tile(from + c, q.row, flip, to);
                else
                    pack_rows_as_tile(Edge<TILE, TILE_DEPTH>(from + c, q.row, size(t), shape.head_dim - c).rows[0],
                                      TILE_DEPTH, flip, to);
            }
        });
    }

    void attend_all(const KeyBlock& block, int64_t first, int64_t end, float c, Ahead& ahead, float* scores) {
        if (first >= end) return;
        for_tiles(2, [&](int64_t h, int64_t t) {
            const Step step = {queries(h, t), state(h, t), rows_ - t * TILE, &block, first, end, fresh_, scores};
            step.rows > TILE ? attend<2>(step, c, ahead) : attend<1>(step, c, ahead);
        });
        fresh_ = false;
    }

    void finish_all(const ForwardParams& params, int64_t first_head, int64_t row) {
        clear_unseen();
        for_tiles(1, [&](int64_t h, int64_t t) {
            finish(params, State(state(h, t)), row + t * TILE, size(t), first_head + h);
        });
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
