// Forward of one unit: out and LSE of its frame rows, and the state of the clip's TIV rows over the keys it has.

// Keys of a block. Its scores and values stay in the first two cache levels while all groups of rows pass over it.
constexpr int64_t BLOCK_KEYS = 128;

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

struct KeyBlock {
    Panels keys, values;
};

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

// Query rows of some heads, transposed group by group, and their states.
class QueryRows {
  public:
    static int64_t scratch(int64_t rows, int64_t heads, int64_t columns, bool with_states) {
        return heads * Groups(rows).count * (columns * WIDTH + (with_states ? State::size(columns) : 0));
    }

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

    State state(int64_t h, int64_t g) const { return State(states_ + h * head_stride_ + g * State::size(columns_)); }
    int64_t size(int64_t g) const {
        const int64_t end = groups_.first_row(g + 1);
        return (end < rows_ ? end : rows_) - groups_.first_row(g);
    }

  private:
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

// Where the state of a clip's TIV rows lies in a workspace.
TIVTOK_INLINE float* slot_states(const ForwardParams& params, int64_t slot, int64_t num_tiv, int64_t head) {
    const int64_t columns = round_up(params.shape.head_dim, PANEL), rows = round_up(num_tiv, SLOT_ROWS);
    return params.part + (slot * params.shape.heads + head * rows) * (columns + 2);
}

// The keys a unit has in hand: TIV keys in blocks, the last of which goes on with keys of a frame.
struct UnitKeys {
    int64_t full_blocks, tail;  // of TIV keys

    explicit UnitKeys(int64_t num_tiv) : full_blocks(num_tiv / BLOCK_KEYS), tail(num_tiv % BLOCK_KEYS) {}
    int64_t blocks() const { return full_blocks + 2; }  // the shared one, and one for the frame alone
};

TIVTOK_INLINE bool has_tiv_rows(const Unit& unit) { return unit.self < unit.self_end || unit.tiv_sees_rows; }

// Rows of the unit's largest frame.
TIVTOK_INLINE int64_t most_rows(const Plan& plan, const Unit& unit) {
    if (unit.frames == 1) return unit.row_end - unit.row;
    int64_t most = 0;
    for (int64_t f = 0; f < unit.frames; f++) {
        const int64_t tokens = plan.frames[unit.frame + f].tokens;
        most = tokens > most ? tokens : most;
    }
    return most;
}

// Neighbouring frames of a unit that go over the shared keys together, and rows of all of them; 0: the first goes
// alone, as all rows but few do, so that no row's result depends on its neighbours.
struct Together {
    int64_t frames, rows;
};

TIVTOK_INLINE Together together(const Plan& plan, const Unit& unit, int64_t first) {
    Together found = {0, 0};
    if (unit.num_tiv < BLOCK_KEYS) return found;
    for (int64_t f = first; f < unit.frames; f++) {
        const int64_t rows = unit.frames == 1 ? unit.row_end - unit.row : plan.frames[unit.frame + f].tokens;
        if (rows > FEW_ROWS || found.rows + rows > ROWS_TOGETHER) break;
        found.frames++, found.rows += rows;
    }
    return found;
}

TIVTOK_INLINE int64_t most_rows_together(const Plan& plan, const Unit& unit) {
    int64_t most = 0;
    for (int64_t f = 0; f < unit.frames;) {
        const Together found = together(plan, unit, f);
        most = found.rows > most ? found.rows : most;
        f += found.frames ? found.frames : 1;
    }
    return most;
}

int64_t forward_scratch(const ForwardParams& params, const Unit& unit) {
    const int64_t columns = round_up(params.shape.head_dim, PANEL), group = params.shape.group;
    const int64_t keys = UnitKeys(unit.num_tiv).blocks() * BLOCK_KEYS * columns * 2;
    const int64_t frame_rows = QueryRows::scratch(most_rows(params.plan, unit), group, columns, true) +
                               QueryRows::scratch(most_rows_together(params.plan, unit), group, columns, true);
    const int64_t tiv_rows = has_tiv_rows(unit) ? QueryRows::scratch(unit.num_tiv, group, columns, true) : 0;
    return keys + frame_rows + tiv_rows + BLOCK_KEYS * WIDTH;
}

class ForwardUnit {
  public:
    ForwardUnit(const ForwardParams& params, const Unit& unit, int64_t key_head, const Next& next, float scale,
                float* scratch)
        : params_(params),
          unit_(unit),
          next_(next),
          key_head_(key_head),
          keys_(unit.num_tiv),
          scratch_(scratch),
          columns_(round_up(params.shape.head_dim, PANEL)),
          group_(params.shape.group),
          sign_(scale < 0 ? -1.f : 1.f),
          c_((scale < 0 ? -scale : scale) * 1.4426950408889634f),
          out_(contiguous(params.out, params.shape.heads, params.shape)),
          ahead_(params.shape) {
        blocks_ = take(keys_.blocks() * BLOCK_KEYS * columns_ * 2);
        scores_ = take(BLOCK_KEYS * WIDTH);
    }

    void run() {
        pack_tiv_keys();
        const bool with_tiv_rows = has_tiv_rows(unit_);
        QueryRows tiv(unit_.num_tiv, group_, columns_, nullptr);
        if (with_tiv_rows) {
            tiv = query_rows(unit_.num_tiv, unit_.q_slot < 0);
            if (unit_.q_slot >= 0) {
                const int64_t head_stride = round_up(unit_.num_tiv, SLOT_ROWS) * (columns_ + 2);
                tiv.use_states(slot_states(params_, unit_.q_slot, unit_.num_tiv, first_head()), head_stride, true);
            }
            tiv.pack(params_.shape, params_.q, first_head(), unit_.tiv_row, sign_);
            for (int64_t b = 0; b <= keys_.full_blocks; b++) {
                const int64_t from = unit_.self - b * BLOCK_KEYS, to = unit_.self_end - b * BLOCK_KEYS;
                const int64_t held = b < keys_.full_blocks ? BLOCK_KEYS : keys_.tail;
                tiv.attend_all(block(b), from > 0 ? from : 0, to < held ? to : held, c_, ahead_, scores_);
            }
        }
        float* const frame_scratch = scratch_;
        for (int64_t f = 0; f < unit_.frames; scratch_ = frame_scratch) {
            const Together few = together(params_.plan, unit_, f);
            if (few.frames)
                run_together(f, few, tiv);
            else
                run_frame(f, tiv);
            f += few.frames ? few.frames : 1;
        }
        if (with_tiv_rows && unit_.q_slot < 0)
            tiv.finish_all(params_, first_head(), unit_.tiv_row);
        else if (with_tiv_rows)
            tiv.clear_unseen();
    }

  private:
    float* take(int64_t floats) {
        float* const p = scratch_;
        scratch_ += floats;
        return p;
    }
    int64_t first_head() const { return key_head_ * group_; }
    const Frame& frame(int64_t f) const { return params_.plan.frames[unit_.frame + f]; }
    int64_t first_row(int64_t f) const { return frame(f).row + (unit_.frames == 1 ? unit_.row : 0); }
    int64_t num_rows(int64_t f) const { return unit_.frames == 1 ? unit_.row_end - unit_.row : frame(f).tokens; }
    KeyBlock block(int64_t b) const {
        float* const keys = blocks_ + b * BLOCK_KEYS * columns_ * 2;
        return {{keys, BLOCK_KEYS}, {keys + BLOCK_KEYS * columns_, BLOCK_KEYS}};
    }
    QueryRows query_rows(int64_t rows, bool own_states) {
        const int64_t queries = QueryRows::scratch(rows, group_, columns_, false);
        QueryRows result(rows, group_, columns_, take(queries));
        if (own_states) {
            const int64_t head_stride = Groups(rows).count * State::size(columns_);
            result.use_states(take(group_ * head_stride), head_stride, true);
        }
        return result;
    }
    QueryRows packed_rows(int64_t row, int64_t rows) {
        QueryRows result = query_rows(rows, true);
        result.pack(params_.shape, params_.q, first_head(), row, sign_);
        return result;
    }
    void pack_keys(const Tensor& k, const Tensor& v, int64_t first, int64_t count, const KeyBlock& to, int64_t row) {
        pack_rows(params_.shape, k, key_head_, first, count, to.keys, row);
        pack_rows(params_.shape, v, key_head_, first, count, to.values, row);
    }
    void pack_tiv_keys() {
        for (int64_t b = 0; b <= keys_.full_blocks; b++) {
            const int64_t held = b < keys_.full_blocks ? BLOCK_KEYS : keys_.tail;
            pack_keys(params_.k_tiv, params_.v_tiv, unit_.tiv_key + b * BLOCK_KEYS, held, block(b), 0);
        }
    }

    void run_frame(int64_t f, QueryRows& tiv) {
        QueryRows own = packed_rows(first_row(f), num_rows(f));
        for (int64_t b = 0; b < keys_.full_blocks; b++) own.attend_all(block(b), 0, BLOCK_KEYS, c_, ahead_, scores_);
        attend_to_frame(f, keys_.tail, own, tiv);
        own.finish_all(params_, first_head(), first_row(f));
    }

    void run_together(int64_t first, const Together& few, QueryRows& tiv) {
        const int64_t row = first_row(first);
        QueryRows all = packed_rows(row, few.rows);
        all.clear_unseen();
        float* const frame_scratch = scratch_;
        for (int64_t f = first; f < first + few.frames; f++, scratch_ = frame_scratch) {
            QueryRows own = packed_rows(first_row(f), num_rows(f));
            attend_to_frame(f, 0, own, tiv);
            own.clear_unseen();
            all.take_states(own, first_row(f) - row);
        }
        for (int64_t b = 0; b <= keys_.full_blocks; b++)
            all.attend_all(block(b), 0, b < keys_.full_blocks ? BLOCK_KEYS : keys_.tail, c_, ahead_, scores_);
        all.finish_all(params_, first_head(), row);
    }

    // A frame's rows over its keys, after the `held` TIV keys of a block that they fill up, and TIV rows over what they
    // see of them.
    void attend_to_frame(int64_t f, int64_t held, QueryRows& own, QueryRows& tiv) {
        const Frame& frame = this->frame(f);
        const int64_t first = first_row(f) - frame.row, end = first + num_rows(f);
        int64_t key = 0;
        do {
            const KeyBlock here = block(keys_.full_blocks + (held == 0));
            const int64_t left = frame.keys - key, count = left < BLOCK_KEYS - held ? left : BLOCK_KEYS - held;
            pack_keys(params_.k, params_.v, frame.key + key, count, here, held);
            ahead_.start(own.tiles(held + count) - 5 * BLOCK_KEYS / 4);
            if (count < left) {
                const int64_t keys = left - count < BLOCK_KEYS ? left - count : BLOCK_KEYS;
                look_ahead(key_head_, frame.key + key + count, keys, frame.row, 0);
            } else {
                ahead_.add(out_, first_head(), frame.row + first, end - first);
                if (f + 1 < unit_.frames)
                    look_ahead(key_head_, (&frame)[1].key, (&frame)[1].keys, (&frame)[1].row, (&frame)[1].tokens);
                else if (next_.unit)
                    look_ahead_to_next();
            }
            own.attend_all(here, 0, held + count, c_, ahead_, scores_);
            if (unit_.tiv_sees_rows) {
                const int64_t from = first - key, to = end - key;
                tiv.attend_all(here, held + (from > 0 ? from : 0), held + (to < count ? to : count), c_, ahead_,
                               scores_);
            }
            key += count, held = 0;
        } while (key < frame.keys);
    }

    // Keys and queries that are packed next.
    void look_ahead(int64_t key_head, int64_t key, int64_t keys, int64_t row, int64_t rows) {
        ahead_.add(params_.k, key_head, key, keys);
        ahead_.add(params_.v, key_head, key, keys);
        ahead_.add(params_.q, key_head * group_, row, rows);
    }
    void look_ahead_to_next() {
        const Unit& unit = *next_.unit;
        if (unit.frames == 0) return;
        const Frame& frame = params_.plan.frames[unit.frame];
        const bool tiv_before = unit.tiv_key + unit.num_tiv == frame.key && params_.k_tiv.data == params_.k.data;
        const int64_t key = tiv_before ? unit.tiv_key : frame.key;
        const int64_t first = frame.row + (unit.frames == 1 ? unit.row : 0);
        const int64_t row = has_tiv_rows(unit) && unit.tiv_row + unit.num_tiv == first ? unit.tiv_row : first;
        const int64_t end = unit.frames == 1 ? frame.row + unit.row_end : frame.row + frame.tokens;
        look_ahead(next_.key_head, key, frame.key + frame.keys - key, row, end - row);
    }

    const ForwardParams& params_;
    const Unit& unit_;
    const Next& next_;
    int64_t key_head_;
    UnitKeys keys_;
    float* scratch_;
    int64_t columns_, group_;
    float sign_, c_;
    float *blocks_, *scores_;
    const Tensor out_;
    Ahead ahead_;
};

void forward_unit(const ForwardParams& params, const Unit& unit, int64_t key_head, const Next& next, float scale,
                  float* scratch) {
    ForwardUnit(params, unit, key_head, next, scale, scratch).run();
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

void forward_merge(const ForwardParams& params, const Merge& merge, int64_t head) {
    const int64_t columns = round_up(params.shape.head_dim, PANEL);
    QueryRows first(merge.length, 1, columns, nullptr);
    first.use_states(slot_states(params, merge.slot, merge.length, head), 0, false);
    const Groups groups(merge.length);
    for (int64_t s = 1; s < merge.slots; s++) {
        QueryRows other(merge.length, 1, columns, nullptr);
        const int64_t slot = merge.slot + s * round_up(merge.length, SLOT_ROWS);
        other.use_states(slot_states(params, slot, merge.length, head), 0, false);
        for (int64_t g = 0; g < groups.count; g++)
            for_vectors(groups.num_vectors(g), [&](auto vectors) {
                join_states<decltype(vectors)::value>(first.state(0, g), other.state(0, g), columns);
            });
    }
    first.finish_all(params, head, merge.row);
}
