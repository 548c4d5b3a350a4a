// Backward of one unit in one pass of five products per block of (query rows, keys):
//     S^T = K Q^T     dP^T = V dO^T     P = exp(scale S - LSE)     dS = P (dP - delta),  delta = rowsum(dO O) - dLSE
//     dV += P^T dO    dK += scale dS^T Q    dQ += scale dS K

// Query rows and keys of a block: (rows x keys) weights and their gradients stay in the first two cache levels.
constexpr int64_t BACKWARD_ROWS = 96;
constexpr int64_t BACKWARD_KEYS = 60;  // a multiple of ROWS and OUTER_ROWS, or nearly so

// Packed keys of one head and the sums of their gradients.
struct KeyRows {
    Panels k, v, dk, dv;

    static int64_t scratch(int64_t rows, int64_t columns) { return 4 * rows * columns; }
};

// Rows cut into blocks of almost equal length.
struct Blocks {
    int64_t rows, length;

    Blocks(int64_t rows, int64_t most, int64_t unit) : rows(rows) {
        const int64_t count = (rows + most - 1) / most;
        length = count ? round_up((rows + count - 1) / count, unit) : 0;
    }
    int64_t count() const { return length ? (rows + length - 1) / length : 0; }
    int64_t first(int64_t block) const { return block * length; }
    int64_t size(int64_t block) const { return block + 1 < count() ? length : rows - first(block); }
};

// Which gradients a block of scores is differentiated for.
enum class Wanted { all, rows, keys };

// Query rows of one head, at most BACKWARD_ROWS of them: as rows, transposed, and their statistics.
class RowBlock {
  public:
    static int64_t scratch(int64_t rows, int64_t columns) {
        const int64_t padded = Groups(rows).count * WIDTH;
        return padded * (5 * columns + 2);
    }

    // Takes `scratch` floats from `p`.
    RowBlock(int64_t rows, int64_t columns, float* p) : groups_(rows), rows_(rows), columns_(columns) {
        const int64_t padded = groups_.count * WIDTH, size = padded * columns;
        q_ = {p, padded}, dout_ = {p + size, padded};
        q_transposed_ = p + 2 * size, dout_transposed_ = p + 3 * size, dq_ = p + 4 * size;
        lse_ = p + 5 * size, delta_ = lse_ + padded;
    }

    void pack(const BackwardParams& params, int64_t head, int64_t row) {
        const Shape& shape = params.shape;
        pack_rows(shape, params.q, head, row, rows_, q_, 0);
        pack_rows(shape, params.dout, head, row, rows_, dout_, 0);
        clear_floats(dq_, groups_.count * WIDTH * columns_);
        clear_floats(lse_, groups_.count * WIDTH * 2);
        for_type(shape.type,
                 [&](auto* type) { pack_statistics<std::remove_pointer_t<decltype(type)>>(params, head, row); });
        for (int64_t g = 0; g < groups_.count; g++)
            for_vectors(groups_.num_vectors(g), [&](auto vectors) {
                constexpr int V = decltype(vectors)::value;
                const int64_t first = groups_.first_row(g), offset = g * WIDTH * columns_;
                for (int64_t c = 0; c < columns_; c += PANEL) {
                    const int64_t to = offset + c * WIDTH;
                    transpose_in<V>(q_.at(first, c), PANEL, size(g), PANEL, 1.f, q_transposed_ + to);
                    transpose_in<V>(dout_.at(first, c), PANEL, size(g), PANEL, 1.f, dout_transposed_ + to);
                }
            });
    }

    // Adds what keys [first, end) and these rows give one another. `weights`, `dscores`: room for a block.
    void attend(const KeyRows& keys, int64_t first, int64_t end, float c, Ahead& ahead, float* weights, float* dscores,
                Wanted wanted = Wanted::all) const {
        if (first >= end) return;
        const int64_t count = end - first;
        for (int64_t g = 0; g < groups_.count; g++)
            for_vectors(groups_.num_vectors(g), [&](auto vectors) {
                constexpr int V = decltype(vectors)::value;
                float *const p = weights + g * BACKWARD_KEYS * WIDTH, *const ds = dscores + g * BACKWARD_KEYS * WIDTH;
                differentiate<V>(g, keys, first, end, c, ahead, p, ds);
                if (wanted != Wanted::keys) add_dq<V>(dq_ + g * WIDTH * columns_, keys.k, first, count, ds);
            });
        if (wanted == Wanted::rows) return;
        add_outer(weights, dout_, keys.dv, first, count);
        add_outer(dscores, q_, keys.dk, first, count);
    }

    // The same for any number of keys, block by block.
    void attend_all(const KeyRows& keys, int64_t first, int64_t end, float c, Ahead& ahead, float* weights,
                    float* dscores, Wanted wanted = Wanted::all) const {
        if (first >= end) return;
        const Blocks blocks(end - first, BACKWARD_KEYS, 12);
        for (int64_t b = 0; b < blocks.count(); b++) {
            const int64_t from = first + blocks.first(b);
            attend(keys, from, from + blocks.size(b), c, ahead, weights, dscores, wanted);
        }
    }

    const Groups& groups() const { return groups_; }
    const float* dq(int64_t g) const { return dq_ + g * WIDTH * columns_; }
    int64_t size(int64_t g) const {
        const int64_t end = groups_.first_row(g + 1);
        return (end < rows_ ? end : rows_) - groups_.first_row(g);
    }

  private:
    template <class T>
    void pack_statistics(const BackwardParams& params, int64_t head, int64_t row) {
        const Shape& shape = params.shape;
        for (int64_t g = 0; g < groups_.count; g++)
            for (int64_t i = 0; i < size(g); i++) {
                const int64_t r = groups_.first_row(g) + i, at = (row + r) * shape.heads + head;
                const T* out = static_cast<const T*>(params.out) + at * shape.head_dim;
                Vec products = Vec{};
                for (int64_t c = 0; c < shape.head_dim; c += PANEL) {
                    float line[PANEL];
                    widen_panel(out + c, shape.head_dim - c, line);
#pragma GCC unroll 4
                    for (int j = 0; j < PANEL; j += LANES) products += load(dout_.at(r, c) + j) * load(line + j);
                }
                const float delta = sum(products) - (params.dlse ? params.dlse[at] : 0.f);
                delta_[g * WIDTH + i] = delta;
                lse_[g * WIDTH + i] = params.lse[at] * 1.4426950408889634f;
            }
    }

    // P and dS of a group, (keys, WIDTH) each.
    template <int V>
    __attribute__((noinline)) void differentiate(int64_t g, const KeyRows& keys, int64_t first, int64_t end, float c,
                                                 Ahead& ahead, float* weights, float* dscores) const {
        const float *q = q_transposed_ + g * WIDTH * columns_, *dout = dout_transposed_ + g * WIDTH * columns_;
        const float *lse = lse_ + g * WIDTH, *delta = delta_ + g * WIDTH;
        in_steps<ROWS>(first, end, [&](int64_t k, auto rows) {
            constexpr int R = decltype(rows)::value;
            float *const p = weights + (k - first) * WIDTH, *const ds = dscores + (k - first) * WIDTH;
            ahead.ask();
            Tile<R, V> tile;
            dot(tile, q, keys.k.at(k, 0), keys.k.capacity * PANEL, columns_);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 3
                for (int v = 0; v < V; v++)
                    store(p + r * WIDTH + v * LANES, exp2(tile.x[r][v] * c - load(lse + v * LANES)));
            dot(tile, dout, keys.v.at(k, 0), keys.v.capacity * PANEL, columns_);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 3
                for (int v = 0; v < V; v++)
                    store(ds + r * WIDTH + v * LANES,
                          load(p + r * WIDTH + v * LANES) * (tile.x[r][v] - load(delta + v * LANES)));
        });
    }

    // dQ^T += K^T dS^T of a group, without the scale.
    template <int V>
    __attribute__((noinline)) void add_dq(float* dq, const Panels& keys, int64_t first, int64_t count,
                                          const float* dscores) const {
        for (int64_t column = 0; column < columns_; column += ROWS, dq += ROWS * WIDTH) {
            Tile<ROWS, V> tile;
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) load_vectors(dq + r * WIDTH, tile.x[r]);
            mix(tile, dscores, keys.at(first, column), count);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
                for (int v = 0; v < V; v++) store(dq + r * WIDTH + v * LANES, tile.x[r][v]);
        }
    }

    // sums [first, first + count) += weights times rows, over all rows of the block.
    __attribute__((noinline)) void add_outer(const float* weights, const Panels& rows, const Panels& sums,
                                             int64_t first, int64_t count) const {
        int64_t column = 0;
        for (; column + OUTER_VECTORS * LANES <= columns_; column += OUTER_VECTORS * LANES)
            add_outer_columns<OUTER_VECTORS>(weights, rows, sums, first, count, column);
        if (column < columns_) add_outer_columns<1>(weights, rows, sums, first, count, column);
    }

    template <int V>
    TIVTOK_INLINE void add_outer_columns(const float* weights, const Panels& rows, const Panels& sums, int64_t first,
                                         int64_t count, int64_t column) const {
        in_steps<OUTER_ROWS>(0, count, [&](int64_t k, auto steps) {
            constexpr int R = decltype(steps)::value;
            Tile<R, V> tile;
            float* to[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) to[v] = sums.at(first + k, column + v * LANES);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) tile.x[r][v] = load(to[v] + r * PANEL);
            for (int64_t g = 0; g < groups_.count; g++) {
                const float* p = weights + (g * BACKWARD_KEYS + k) * WIDTH;
                const float* from[V];
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) from[v] = rows.at(groups_.first_row(g), column + v * LANES);
                const int64_t held = size(g);
#pragma GCC unroll 2
                for (int64_t i = 0; i < held; i++) {
                    Vec x[V];
#pragma GCC unroll 2
                    for (int v = 0; v < V; v++) x[v] = load(from[v] + i * PANEL);
                    tile.template add<WIDTH>(p + i, x);
                }
            }
#pragma GCC unroll 12
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) store(to[v] + r * PANEL, tile.x[r][v]);
        });
    }

    Groups groups_;
    int64_t rows_, columns_;
    Panels q_, dout_;
    float *q_transposed_, *dout_transposed_, *dq_, *lse_, *delta_;
};

TIVTOK_INLINE Blocks row_blocks(int64_t rows) { return Blocks(rows, BACKWARD_ROWS, LANES); }

// Floats of a block's weights or of their gradients.
constexpr int64_t BLOCK_SCRATCH = (BACKWARD_ROWS / WIDTH + 1) * WIDTH * BACKWARD_KEYS;

TIVTOK_INLINE int64_t frame_keys(const Plan& plan, const Unit& unit) {
    int64_t most = 0;
    for (int64_t f = 0; f < unit.frames; f++) {
        const int64_t keys = plan.frames[unit.frame + f].keys;
        most = keys > most ? keys : most;
    }
    return most;
}

TIVTOK_INLINE int64_t row_blocks_scratch(int64_t rows, int64_t group, int64_t columns) {
    const Blocks blocks = row_blocks(rows);
    return group * blocks.count() * RowBlock::scratch(blocks.length, columns);
}

int64_t backward_scratch(const BackwardParams& params, const Unit& unit) {
    const int64_t columns = round_up(params.shape.head_dim, PANEL);
    const int64_t keys = KeyRows::scratch(unit.num_tiv + frame_keys(params.plan, unit), columns);
    const int64_t own = RowBlock::scratch(BACKWARD_ROWS, columns);
    const int64_t tiv = has_tiv_rows(unit) ? row_blocks_scratch(unit.num_tiv, params.shape.group, columns) : 0;
    return keys + own + tiv + 2 * BLOCK_SCRATCH;
}

// dQ of a block: the scale times (columns, WIDTH) sums of each group -> rows of the tensor.
void write_dq(const BackwardParams& params, const RowBlock& block, int64_t head, int64_t row, float scale) {
    const Shape& shape = params.shape;
    for (int64_t g = 0; g < block.groups().count; g++)
        for_vectors(block.groups().num_vectors(g), [&](auto vectors) {
            Vec factor[decltype(vectors)::value];
            for (Vec& x : factor) x = splat(scale);
            for_type(shape.type, [&](auto* type) {
                auto* rows = static_cast<decltype(type)>(params.dq) +
                             ((row + block.groups().first_row(g)) * shape.heads + head) * shape.head_dim;
                transpose_out(block.dq(g), factor, block.size(g), shape.head_dim, rows, shape.heads * shape.head_dim);
            });
        });
}

void write_keys(const BackwardParams& params, const KeyRows& keys, int64_t key_head, int64_t count, int64_t row,
                void* dk, void* dv, float scale) {
    const int64_t key_heads = params.shape.heads / params.shape.group;
    for (int64_t i = 0; i < count; i++) {
        write_row(params.shape, key_heads, dk, row + i, key_head, keys.dk.at(i, 0), count * PANEL, scale);
        write_row(params.shape, key_heads, dv, row + i, key_head, keys.dv.at(i, 0), count * PANEL, 1.f);
    }
}

// What one thread has while it differentiates for one key head.
class GradientUnit {
  protected:
    GradientUnit(const BackwardParams& params, int64_t key_head, float scale, float* scratch)
        : params_(params),
          key_head_(key_head),
          scratch_(scratch),
          columns_(round_up(params.shape.head_dim, PANEL)),
          scale_(scale),
          c_(scale * 1.4426950408889634f),
          ahead_(params.shape) {
        weights_ = take(BLOCK_SCRATCH);
        dscores_ = take(BLOCK_SCRATCH);
    }

    float* take(int64_t floats) {
        float* const p = scratch_;
        scratch_ += floats;
        return p;
    }
    void pack_keys(const Tensor& k, const Tensor& v, int64_t first, int64_t count, const KeyRows& to) const {
        pack_rows(params_.shape, k, key_head_, first, count, to.k, 0);
        pack_rows(params_.shape, v, key_head_, first, count, to.v, 0);
    }
    void attend(const RowBlock& rows, const KeyRows& keys, int64_t first, int64_t end, Wanted wanted = Wanted::all) {
        rows.attend_all(keys, first, end, c_, ahead_, weights_, dscores_, wanted);
    }

    const BackwardParams& params_;
    int64_t key_head_;
    float* scratch_;
    int64_t columns_;
    float scale_, c_;
    float *weights_, *dscores_;
    Ahead ahead_;
};

class BackwardUnit : GradientUnit {
  public:
    BackwardUnit(const BackwardParams& params, const Unit& unit, int64_t key_head, float scale, float* scratch)
        : GradientUnit(params, key_head, scale, scratch), unit_(unit) {}

    void run() {
        const KeyRows tiv_keys = keys(params_.k_tiv, params_.v_tiv, unit_.tiv_key, unit_.num_tiv,
                                      slot(params_.part_k, unit_.k_slot, unit_.num_tiv));
        const bool with_tiv_rows = has_tiv_rows(unit_);
        if (with_tiv_rows) {
            tiv_rows_ = scratch_;
            scratch_ += row_blocks_scratch(unit_.num_tiv, params_.shape.group, columns_);
            for_tiv_rows([&](RowBlock& block, int64_t head, int64_t first) {
                block.pack(params_, head, unit_.tiv_row + first);
                attend(block, tiv_keys, unit_.self, unit_.self_end);
            });
        }
        float* const frame_scratch = scratch_;
        for (int64_t f = 0; f < unit_.frames; f++, scratch_ = frame_scratch)
            run_frame(params_.plan.frames[unit_.frame + f], f + 1 < unit_.frames, tiv_keys);
        if (with_tiv_rows)
            for_tiv_rows([&](RowBlock& block, int64_t head, int64_t first) { finish_tiv(block, head, first); });
        if (unit_.k_slot < 0)
            write_keys(params_, tiv_keys, key_head_, unit_.num_tiv, unit_.tiv_key, params_.dk_tiv, params_.dv_tiv,
                       scale_);
    }

  private:
    // Partial dK and dV of this head's keys in a workspace, or null where the unit has them to itself.
    float* slot(float* part, int64_t row, int64_t rows) const {
        const int64_t key_heads = params_.shape.heads / params_.shape.group;
        return row < 0 ? nullptr : part + (row * key_heads + key_head_ * rows) * 2 * columns_;
    }
    KeyRows keys(const Tensor& k, const Tensor& v, int64_t first, int64_t count, float* sums) {
        const int64_t size = count * columns_;
        KeyRows result;
        result.k = {take(size), count}, result.v = {take(size), count};
        if (!sums) sums = take(2 * size);
        result.dk = {sums, count}, result.dv = {sums + size, count};
        pack_keys(k, v, first, count, result);
        clear_floats(sums, 2 * size);
        return result;
    }

    // Calls body(block, head, first row of the block among the TIV rows).
    template <class Body>
    void for_tiv_rows(const Body& body) {
        const Blocks blocks = row_blocks(unit_.num_tiv);
        float* p = tiv_rows_;
        for (int64_t h = 0; h < params_.shape.group; h++)
            for (int64_t b = 0; b < blocks.count(); b++, p += RowBlock::scratch(blocks.length, columns_)) {
                RowBlock block(blocks.size(b), columns_, p);
                body(block, key_head_ * params_.shape.group + h, blocks.first(b));
            }
    }

    void run_frame(const Frame& frame, bool another, const KeyRows& tiv_keys) {
        const int64_t first = unit_.frames == 1 ? unit_.row : 0;
        const int64_t end = unit_.frames == 1 ? unit_.row_end : frame.tokens;
        const KeyRows own_keys = keys(params_.k, params_.v, frame.row, frame.tokens,
                                      slot(params_.part_frame, unit_.frame_slot, frame.tokens));
        const Blocks blocks = row_blocks(end - first);
        float* const p = take(RowBlock::scratch(blocks.length, columns_));
        for (int64_t h = 0; h < params_.shape.group; h++)
            for (int64_t b = 0; b < blocks.count(); b++) {
                const int64_t head = key_head_ * params_.shape.group + h, row = frame.row + first + blocks.first(b);
                RowBlock block(blocks.size(b), columns_, p);
                block.pack(params_, head, row);
                look_ahead(frame, another, head, row + blocks.size(b), b + 1 < blocks.count() ? blocks.size(b + 1) : 0);
                attend(block, tiv_keys, 0, unit_.num_tiv);
                attend(block, own_keys, 0, frame.tokens);
                write_dq(params_, block, head, row, scale_);
            }
        if (unit_.tiv_sees_rows)
            for_tiv_rows([&](RowBlock& block, int64_t, int64_t) { attend(block, own_keys, first, end); });
        if (unit_.frame_slot < 0)
            write_keys(params_, own_keys, key_head_, frame.keys, frame.key, params_.dk, params_.dv, scale_);
    }

    // The next rows of a frame, if there are any, or the next frame.
    void look_ahead(const Frame& frame, bool another, int64_t head, int64_t row, int64_t rows) {
        const Shape& shape = params_.shape;
        ahead_.start(0);
        if (rows == 0 && !another) return;
        if (rows == 0) {
            const int64_t key_heads = shape.heads / shape.group;
            row = (&frame)[1].row, rows = (&frame)[1].tokens;
            ahead_.add(params_.k, key_head_, row, rows);
            ahead_.add(params_.v, key_head_, row, rows);
            ahead_.add(contiguous(params_.dk, key_heads, shape), key_head_, row, rows);
            ahead_.add(contiguous(params_.dv, key_heads, shape), key_head_, row, rows);
        }
        ahead_.add(params_.q, head, row, rows);
        ahead_.add(params_.dout, head, row, rows);
        ahead_.add(contiguous(params_.out, shape.heads, shape), head, row, rows);
        ahead_.add(contiguous(params_.dq, shape.heads, shape), head, row, rows);
    }

  public:
    static float* q_slot(const BackwardParams& params, int64_t slot, int64_t num_tiv, int64_t head) {
        const int64_t columns = round_up(params.shape.head_dim, PANEL);
        return params.part_q + (slot * params.shape.heads + head * round_up(num_tiv, SLOT_ROWS)) * columns;
    }

  private:
    void finish_tiv(const RowBlock& block, int64_t head, int64_t first) const {
        if (unit_.q_slot < 0) return write_dq(params_, block, head, unit_.tiv_row + first, scale_);
        // Rows of columns, so that blocks of rows need no padding of their own.
        float* to = q_slot(params_, unit_.q_slot, unit_.num_tiv, head) + first * columns_;
        for (int64_t g = 0; g < block.groups().count; g++)
            for_vectors(block.groups().num_vectors(g), [&](auto vectors) {
                constexpr int V = decltype(vectors)::value;
                Vec factor[V];
                for (int v = 0; v < V; v++) factor[v] = splat(1.f);
                transpose_out(block.dq(g), factor, block.size(g), columns_, to + block.groups().first_row(g) * columns_,
                              columns_);
            });
    }

    const Unit& unit_;
    float* tiv_rows_ = nullptr;
};

void backward_unit(const BackwardParams& params, const Unit& unit, int64_t key_head, float scale, float* scratch) {
    BackwardUnit(params, unit, key_head, scale, scratch).run();
}

// Adds slots up in order, into the first.
TIVTOK_INLINE void add_slots(float* first, int64_t size, int64_t stride, int64_t slots) {
    for (int64_t s = 1; s < slots; s++) {
        const float* other = first + s * stride;
        for (int64_t i = 0; i < size; i++) first[i] += other[i];
    }
}

void merge_q(const BackwardParams& params, const Merge& merge, int64_t head, float scale) {
    const int64_t columns = round_up(params.shape.head_dim, PANEL), rows = round_up(merge.length, SLOT_ROWS);
    float* const first = BackwardUnit::q_slot(params, merge.slot, merge.length, head);
    add_slots(first, merge.length * columns, rows * params.shape.heads * columns, merge.slots);
    for (int64_t i = 0; i < merge.length; i++)
        write_row(params.shape, params.shape.heads, params.dq, merge.row + i, head, first + i * columns, PANEL, scale);
}

void merge_keys(const BackwardParams& params, const Merge& merge, int64_t key_head, float scale, bool tiv) {
    const int64_t columns = round_up(params.shape.head_dim, PANEL), key_heads = params.shape.heads / params.shape.group;
    const int64_t size = merge.length * columns * 2;
    float* const first =
        (tiv ? params.part_k : params.part_frame) + (merge.slot * key_heads + key_head * merge.length) * 2 * columns;
    add_slots(first, size, size * key_heads, merge.slots);
    void *const dk = tiv ? params.dk_tiv : params.dk, *const dv = tiv ? params.dv_tiv : params.dv;
    for (int64_t i = 0; i < merge.length; i++) {
        const int64_t panel = merge.length * PANEL;
        write_row(params.shape, key_heads, dk, merge.row + i, key_head, first + i * PANEL, panel, scale);
        write_row(params.shape, key_heads, dv, merge.row + i, key_head, first + size / 2 + i * PANEL, panel, 1.f);
    }
}
