// The steps of an item: which keys, in which order.
//
// Keys come in boxes of kBoxRows rows that TMA cuts off where their range ends, with zeros behind (row_boxes). Range A
// and range B are a sequence of boxes, those that are not whole first:
//
//     [end of A] [end of B] [whole boxes of A] [whole boxes of B]
//
// A step takes BLOCK_K / kBoxRows of them, the first one as many as make all others full. So keys are hidden in step 0
// and, where that has room for one box only and neither range ends with a whole one, in the first box of step 1; the
// main loop needs no mask.
#pragma once
#include "common/ring.h"
#include "common/tile.h"
#include "forward/hopper/config.h"
#include "forward/hopper/params.h"

namespace hopper {

// `rows` rows of range A or B from `row` on.
struct Box {
    bool in_a;
    int row, rows;
};

// One (tile, head), as its loader sees it.
template <class C>
struct Plan {
    static constexpr int kBoxes = C::kBlockK / C::kBoxRows;  // per step

    Tile tile;
    int head, key_head;
    int end_a, end_b;      // rows of the boxes that are not whole, 0 for none
    int whole_a, whole_b;  // boxes

    DEVICE Plan(const KernelParams& p, int i) {
        const int item = p.shares.order[i];
        tile = load_tile(p.forward.tiles, item / p.forward.heads);
        head = item % p.forward.heads;
        key_head = head / p.forward.group;
        end_a = (tile.a_end - tile.a) % C::kBoxRows;
        end_b = (tile.b_end - tile.b) % C::kBoxRows;
        whole_a = (tile.a_end - tile.a) / C::kBoxRows;
        whole_b = (tile.b_end - tile.b) / C::kBoxRows;
    }

    DEVICE int ends() const { return (end_a > 0) + (end_b > 0); }
    DEVICE int boxes() const { return ends() + whole_a + whole_b; }
    DEVICE int steps() const { return (boxes() + kBoxes - 1) / kBoxes; }
    DEVICE int first_boxes() const { return boxes() - (steps() - 1) * kBoxes; }  // of step 0

    DEVICE Box box(int i) const {
        if (end_a > 0 && i == 0) return {true, tile.a_end - end_a, end_a};
        if (i < ends()) return {false, tile.b_end - end_b, end_b};
        const int i_a = i - ends(), i_b = i_a - whole_a;
        return i_b < 0 ? Box{true, tile.a + i_a * C::kBoxRows, C::kBoxRows}
                       : Box{false, tile.b + i_b * C::kBoxRows, C::kBoxRows};
    }
    // Whether the boxes of a step that begins with box i lie end to end.
    DEVICE bool is_tile(int i) const {
        const int i_b = i - ends() - whole_a;
        return i >= ends() && (i_b >= 0 || i_b + kBoxes <= 0);
    }
};

template <class C>
DEVICE Item item_of(const Plan<C>& plan) {
    const int first = plan.first_boxes();
    const auto rows = [&](int i) { return i < plan.boxes() ? plan.box(i).rows : 0; };
    return {.row = plan.tile.row,
            .row_end = plan.tile.row_end,
            .slot = plan.tile.slot,
            .head = plan.head,
            .steps = plan.steps(),
            .first_boxes = first,
            .rows = {rows(0), rows(1)}};
}

}  // namespace hopper
