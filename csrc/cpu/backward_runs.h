// Backward under a mask of any two ranges, where many runs of rows may see the same keys: dQ of the rows of a run over
// its two ranges of keys, and dK and dV of the keys of a run over the two ranges of rows that see them. Every result
// has one owner and nothing is merged. The price is two more products: S and dP are computed for both.

// Keys that are packed at a time beside the rows of a run.
constexpr int64_t RUN_KEYS = 4 * BACKWARD_KEYS;

class RunUnit : GradientUnit {
  public:
    RunUnit(const BackwardParams& params, const Run& run, int64_t key_head, float scale, float* scratch)
        : GradientUnit(params, key_head, scale, scratch), run_(run) {}

    static int64_t scratch(const BackwardParams& params, const Run& run) {
        const int64_t columns = round_up(params.shape.head_dim, PANEL);
        const int64_t rows = row_blocks_scratch(run.length, params.shape.group, columns) + 2 * RUN_KEYS * columns;
        const int64_t keys = KeyRows::scratch(run.length, columns) + RowBlock::scratch(BACKWARD_ROWS, columns);
        return 2 * BLOCK_SCRATCH + (rows > keys ? rows : keys);
    }

    void row_gradients() {
        float* const rows = take(row_blocks_scratch(run_.length, params_.shape.group, columns_));
        float* const panels = take(2 * RUN_KEYS * columns_);
        for_blocks(run_.start, run_.length, rows, true,
                   [&](RowBlock& block, int64_t head, int64_t row) { block.pack(params_, head, row); });
        for_ranges([&](int64_t first, int64_t length) {
            for (int64_t key = 0; key < length; key += RUN_KEYS) {
                const int64_t count = length - key < RUN_KEYS ? length - key : RUN_KEYS;
                KeyRows keys;
                keys.k = {panels, count}, keys.v = {panels + count * columns_, count};
                pack_keys(params_.k, params_.v, first + key, count, keys);
                for_blocks(run_.start, run_.length, rows, true,
                           [&](RowBlock& block, int64_t, int64_t) { attend(block, keys, 0, count, Wanted::rows); });
            }
        });
        for_blocks(run_.start, run_.length, rows, true,
                   [&](RowBlock& block, int64_t head, int64_t row) { write_dq(params_, block, head, row, scale_); });
    }

    void key_gradients() {
        const int64_t count = run_.length, size = count * columns_;
        float* const p = take(KeyRows::scratch(count, columns_));
        const KeyRows keys = {{p, count}, {p + size, count}, {p + 2 * size, count}, {p + 3 * size, count}};
        pack_keys(params_.k, params_.v, run_.start, count, keys);
        clear_floats(p + 2 * size, 2 * size);
        for_ranges([&](int64_t first, int64_t length) {
            for_blocks(first, length, scratch_, false, [&](RowBlock& block, int64_t head, int64_t row) {
                block.pack(params_, head, row);
                attend(block, keys, 0, count, Wanted::keys);
            });
        });
        write_keys(params_, keys, key_head_, count, run_.start, params_.dk, params_.dv, scale_);
    }

  private:
    // Calls body(first, length) for both ranges.
    template <class Body>
    void for_ranges(const Body& body) const {
        body(run_.a, run_.a_length);
        body(run_.b, run_.b_length);
    }

    // Calls body(block, head, first row), in memory at `p` that is each block's own or, if not `kept`, the same for
    // all.
    template <class Body>
    void for_blocks(int64_t first, int64_t rows, float* p, bool kept, const Body& body) const {
        const Blocks blocks = row_blocks(rows);
        const int64_t size = kept ? RowBlock::scratch(blocks.length, columns_) : 0;
        for (int64_t h = 0; h < params_.shape.group; h++)
            for (int64_t b = 0; b < blocks.count(); b++, p += size) {
                RowBlock block(blocks.size(b), columns_, p);
                body(block, key_head_ * params_.shape.group + h, first + blocks.first(b));
            }
    }

    const Run& run_;
};

int64_t run_scratch(const BackwardParams& params, const Run& run) { return RunUnit::scratch(params, run); }

void row_gradients(const BackwardParams& params, const Run& run, int64_t key_head, float scale, float* scratch) {
    RunUnit(params, run, key_head, scale, scratch).row_gradients();
}

void key_gradients(const BackwardParams& params, const Run& run, int64_t key_head, float scale, float* scratch) {
    RunUnit(params, run, key_head, scale, scratch).key_gradients();
}
