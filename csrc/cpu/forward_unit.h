// Forward of one unit: out and LSE of its frame rows, and the state of the clip's TIV rows over the keys it has.
//
// What keys and rows are packed as and multiplied by is in the header before it: forward.h, or forward_amx.h.

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

// Where a part of `count` keys begins or ends that was cut at `key`.
TIVTOK_INLINE int64_t key_step(int64_t key, int64_t count) {
    const int64_t up = round_up(key, KEY_STEP);
    return up < count ? up : count;
}

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
    const int64_t keys = UnitKeys(unit.num_tiv).blocks() * KeyBlock::size(columns);
    const int64_t frame_rows = QueryRows::scratch(most_rows(params.plan, unit), group, columns, true) +
                               QueryRows::scratch(most_rows_together(params.plan, unit), group, columns, true);
    const int64_t tiv_rows = has_tiv_rows(unit) ? QueryRows::scratch(unit.num_tiv, group, columns, true) : 0;
    return keys + frame_rows + tiv_rows + scores_size();
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
        blocks_ = take(keys_.blocks() * KeyBlock::size(columns_));
        scores_ = take(scores_size());
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
                const int64_t from = key_step(unit_.self, unit_.num_tiv) - b * BLOCK_KEYS;
                const int64_t to = key_step(unit_.self_end, unit_.num_tiv) - b * BLOCK_KEYS;
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
        return KeyBlock(blocks_ + b * KeyBlock::size(columns_), columns_, b == keys_.full_blocks ? keys_.tail : 0);
    }
    QueryRows query_rows(int64_t rows, bool own_states) {
        const int64_t queries = QueryRows::scratch(rows, group_, columns_, false);
        QueryRows result(rows, group_, columns_, take(queries));
        if (own_states) {
            const int64_t head_stride = QueryRows::states_size(rows, columns_);
            result.use_states(take(group_ * head_stride), head_stride, true);
        }
        return result;
    }
    QueryRows packed_rows(int64_t row, int64_t rows) {
        QueryRows result = query_rows(rows, true);
        result.pack(params_.shape, params_.q, first_head(), row, sign_);
        return result;
    }
    void pack_tiv_keys() {
        for (int64_t b = 0; b <= keys_.full_blocks; b++) {
            const int64_t held = b < keys_.full_blocks ? BLOCK_KEYS : keys_.tail;
            const int64_t first = unit_.tiv_key + b * BLOCK_KEYS;
            block(b).pack(params_.shape, params_.k_tiv, params_.v_tiv, key_head_, first, held, 0);
        }
    }

    void run_frame(int64_t f, QueryRows& tiv) {
        QueryRows own = packed_rows(first_row(f), num_rows(f));
        for (int64_t b = 0; b < keys_.full_blocks; b++) own.attend_all(block(b), 0, BLOCK_KEYS, c_, ahead_, scores_);
        attend_to_frame(f, round_up(keys_.tail, KEY_STEP), own, tiv);
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
            here.pack(params_.shape, params_.k, params_.v, key_head_, frame.key + key, count, held);
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
                const int64_t from = key_step(first, frame.keys) - key, to = key_step(end, frame.keys) - key;
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

void forward_merge(const ForwardParams& params, const Merge& merge, int64_t head) {
    const int64_t columns = round_up(params.shape.head_dim, PANEL);
    QueryRows first(merge.length, 1, columns, nullptr);
    first.use_states(slot_states(params, merge.slot, merge.length, head), 0, false);
    for (int64_t s = 1; s < merge.slots; s++) {
        QueryRows other(merge.length, 1, columns, nullptr);
        const int64_t slot = merge.slot + s * round_up(merge.length, SLOT_ROWS);
        other.use_states(slot_states(params, slot, merge.length, head), 0, false);
        first.join(other);
    }
    first.finish_all(params, head, merge.row);
}
