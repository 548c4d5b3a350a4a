// Rows and keys of the forward as vectors of lanes have them: a group of query rows over a block of keys.

// Keys of a block. Its scores and values stay in the first two cache levels while all groups of rows pass over it.
constexpr int64_t BLOCK_KEYS = 128;
constexpr int64_t KEY_STEP = 1;  // ranges of keys begin at any

// Frames of up to so many rows leave lanes empty. They go over their own keys one by one, then over the shared keys
// together with neighbours, up to so many rows of them at a time.
constexpr int64_t FEW_ROWS = WIDTH / 2;
constexpr int64_t ROWS_TOGETHER = 8 * WIDTH;

// Streaming softmax of a group of rows: maximum and sum in base 2, and sums of values (columns, WIDTH). What it holds
// before its first keys is never read.
struct State {
    float *peak, *total, *sums;

    static int64_t size(int64_t columns) { return (columns + 2) * WIDTH; }

    explicit State(float* p) : peak(p), total(p + WIDTH), sums(p + 2 * WIDTH) {}
    void clear(int64_t columns) const {
        for (int i = 0; i < WIDTH; i++) peak[i] = -__builtin_inff();
        clear_floats(total, (columns + 1) * WIDTH);
    }
};

// Packed keys and values of a head.
struct KeyBlock {
    Panels keys, values;

    static int64_t size(int64_t columns) { return BLOCK_KEYS * columns * 2; }

    KeyBlock(float* p, int64_t columns, int64_t /* keys before a gap: there is none */)
        : keys{p, BLOCK_KEYS}, values{p + BLOCK_KEYS * columns, BLOCK_KEYS} {}

    // Rows [first, first + count) of a head become keys from `key` on.
    void pack(const Shape& shape, const Tensor& k, const Tensor& v, int64_t head, int64_t first, int64_t count,
              int64_t key) const {
        pack_rows(shape, k, head, first, count, keys, key);
        pack_rows(shape, v, head, first, count, values, key);
    }
};

// Floats of a group's scores of a block.
TIVTOK_INLINE int64_t scores_size() { return BLOCK_KEYS * WIDTH; }

// The subtrahend of a row's exponents: its maximum, or 0 where all scores are -inf.
TIVTOK_INLINE Vec finite_peak(Vec peak) { return select(peak > splat(-__builtin_inff()), peak, Vec{}); }

// Adds keys [first, end) of a block to the state of a group, or makes it of them. `c` >= 0 brings scores to base 2.
template <int V>
__attribute__((noinline)) void attend(const float* queries, const KeyBlock& block, int64_t first, int64_t end,
                                      int64_t columns, float c, const State& state, bool fresh, Ahead& ahead,
                                      float* scores) {
    Vec peak[V];
    for (int v = 0; v < V; v++) peak[v] = splat(-__builtin_inff());
    in_steps<ROWS>(first, end, [&](int64_t k, auto rows) {
        constexpr int R = decltype(rows)::value;
        ahead.ask();
        Tile<R, V> tile;
        dot(tile, queries, block.keys.at(k, 0), block.keys.capacity * PANEL, columns);
        float* to = scores + (k - first) * WIDTH;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 3
            for (int v = 0; v < V; v++) {
                store(to + r * WIDTH + v * LANES, tile.x[r][v]);
                peak[v] = max(tile.x[r][v], peak[v]);
            }
    });

    Vec decay[V];
    const int64_t count = end - first;
    for (int v = 0; v < V; v++) {
        const Vec before = fresh ? splat(-__builtin_inff()) : load(state.peak + v * LANES);
        const Vec now = max(peak[v] * c, before);
        const Vec base = finite_peak(now);
        decay[v] = exp2(before - base);
        store(state.peak + v * LANES, now);
        float* s = scores + v * LANES;
        Vec sum_even = Vec{}, sum_odd = Vec{};
        int64_t k = 0;
        for (; k + 2 <= count; k += 2, s += 2 * WIDTH) {
            const Vec even = exp2(load(s) * c - base), odd = exp2(load(s + WIDTH) * c - base);
            store(s, even), store(s + WIDTH, odd);
            sum_even += even, sum_odd += odd;
        }
        if (k < count) {
            const Vec even = exp2(load(s) * c - base);
            store(s, even);
            sum_even += even;
        }
        const Vec total = sum_even + sum_odd;
        store(state.total + v * LANES, fresh ? total : load(state.total + v * LANES) * decay[v] + total);
    }

    for (int64_t column = 0; column < columns; column += ROWS) {
        Tile<ROWS, V> tile;
        float* to = state.sums + column * WIDTH;
        if (fresh) {
            tile.clear();
        } else {
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
                for (int v = 0; v < V; v++) tile.x[r][v] = load(to + r * WIDTH + v * LANES) * decay[v];
        }
        mix(tile, scores, block.values.at(first, column), count);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int v = 0; v < V; v++) store(to + r * WIDTH + v * LANES, tile.x[r][v]);
    }
}

// Writes out and LSE of a group of `count` rows.
template <int V>
void finish(const ForwardParams& params, const State& state, int64_t row, int64_t count, int64_t head) {
    const Shape& shape = params.shape;
    Vec inverse[V];
    float lse[WIDTH];
    for (int v = 0; v < V; v++) {
        const Vec peak = load(state.peak + v * LANES), total = load(state.total + v * LANES);
        const Vec all_hidden = splat(__builtin_nanf(""));  // no score above -inf: 0 / 0, as softmax has it
        inverse[v] = select(peak > splat(-__builtin_inff()), 1.f / total, all_hidden);
        store(lse + v * LANES, (peak + log2(total)) * splat(0.6931471805599453f));
    }
    for_type(shape.type, [&](auto* type) {
        auto* out = static_cast<decltype(type)>(params.out) + (row * shape.heads + head) * shape.head_dim;
        transpose_out(state.sums, inverse, count, shape.head_dim, out, shape.heads * shape.head_dim);
    });
    for (int64_t i = 0; params.lse && i < count; i++) params.lse[(row + i) * shape.heads + head] = lse[i];
}

// Joins the states that several units have of the same TIV rows.
template <int V>
void join_states(const State& into, const State& other, int64_t columns) {
    for (int v = 0; v < V; v++) {
        float *peak = into.peak + v * LANES, *total = into.total + v * LANES;
        const Vec a = load(peak), b = load(other.peak + v * LANES), now = max(a, b);
        const Vec base = finite_peak(now), weight_a = exp2(a - base), weight_b = exp2(b - base);
        store(peak, now);
        store(total, load(total) * weight_a + load(other.total + v * LANES) * weight_b);
        for (int64_t c = 0; c < columns; c++) {
            float* sums = into.sums + c * WIDTH + v * LANES;
            store(sums, load(sums) * weight_a + load(other.sums + c * WIDTH + v * LANES) * weight_b);
        }
    }
}

// Query rows of some heads, transposed group by group, and their states.
class QueryRows {
  public:
    static int64_t scratch(int64_t rows, int64_t heads, int64_t columns, bool with_states) {
        return heads * (Groups(rows).count * columns * WIDTH + (with_states ? states_size(rows, columns) : 0));
    }
    static int64_t states_size(int64_t rows, int64_t columns) { return Groups(rows).count * State::size(columns); }

    QueryRows(int64_t rows, int64_t heads, int64_t columns, float* queries)
        : groups_(rows), rows_(rows), heads_(heads), columns_(columns), queries_(queries) {}

    // `fresh`: they have seen no key, and what lies there means nothing.
    void use_states(float* states, int64_t head_stride, bool fresh) {
        states_ = states, head_stride_ = head_stride, fresh_ = fresh;
    }

    void pack(const Shape& shape, const Tensor& q, int64_t first_head, int64_t row, float sign) {
        for_type(shape.type, [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            for_groups([&](int64_t h, int64_t g, auto vectors) {
                const T* rows = row_of<T>(q, row + groups_.first_row(g), first_head + h);
                transpose_in<decltype(vectors)::value>(rows, q.row, size(g), shape.head_dim, sign, queries(h, g));
            });
        });
    }

    void attend_all(const KeyBlock& block, int64_t first, int64_t end, float c, Ahead& ahead, float* scores) {
        if (first >= end) return;
        for_groups([&](int64_t h, int64_t g, auto vectors) {
            attend<decltype(vectors)::value>(queries(h, g), block, first, end, columns_, c, state(h, g), fresh_, ahead,
                                             scores);
        });
        fresh_ = false;
    }

    void finish_all(const ForwardParams& params, int64_t first_head, int64_t row) {
        clear_unseen();
        for_groups([&](int64_t h, int64_t g, auto vectors) {
            finish<decltype(vectors)::value>(params, state(h, g), row + groups_.first_row(g), size(g), first_head + h);
        });
    }

    // Tiles of scores with so many keys.
    int64_t tiles(int64_t keys) const { return heads_ * groups_.count * ((keys + ROWS - 1) / ROWS); }

    // States of rows that have seen no key.
    void clear_unseen() {
        if (fresh_) for_groups([&](int64_t h, int64_t g, auto) { state(h, g).clear(columns_); });
        fresh_ = false;
    }

    // Takes over the states of `few` rows of one group each, which are these from row `first` on.
    void take_states(const QueryRows& few, int64_t first) {
        for (int64_t g = 0; g < groups_.count; g++) {
            const int64_t start = groups_.first_row(g) - first, end = start + size(g);  // among the few
            const int64_t from = start > 0 ? start : 0, to = end < few.rows_ ? end : few.rows_;
            for (int64_t h = 0; h < heads_; h++) {
                float* const lanes = state(h, g).peak - start;
                const float* const others = few.state(h, 0).peak;
                for (int64_t c = 0; c < State::size(columns_); c += WIDTH)
                    for (int64_t r = from; r < to; r++) lanes[c + r] = others[c + r];
            }
        }
        fresh_ = false;
    }

    // Adds what other rows' states hold to these.
    void join(const QueryRows& other) const {
        for_groups([&](int64_t h, int64_t g, auto vectors) {
            join_states<decltype(vectors)::value>(state(h, g), other.state(h, g), columns_);
        });
    }

  private:
    State state(int64_t h, int64_t g) const { return State(states_ + h * head_stride_ + g * State::size(columns_)); }
    int64_t size(int64_t g) const {
        const int64_t end = groups_.first_row(g + 1);
        return (end < rows_ ? end : rows_) - groups_.first_row(g);
    }
    // Calls body(head, group, constant number of vectors).
    template <class Body>
    void for_groups(const Body& body) const {
        for (int64_t h = 0; h < heads_; h++)
            for (int64_t g = 0; g < groups_.count; g++)
                for_vectors(groups_.num_vectors(g), [&](auto vectors) { body(h, g, vectors); });
    }

    float* queries(int64_t h, int64_t g) const { return queries_ + (h * groups_.count + g) * columns_ * WIDTH; }

    Groups groups_;
    int64_t rows_, heads_, columns_;
    float *queries_, *states_ = nullptr;
    int64_t head_stride_ = 0;
    bool fresh_ = true;
};
