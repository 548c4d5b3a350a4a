// The steps of an item: which keys, in which order, and where in shared memory.
//
// Full tiles of range A and of range B come by TMA. What is left of both is copied row by row as if it lay end to end,
// into one or two tiles that come first: the masked step is then always step 0, and the main loop needs no mask.
// An item with n keys takes ceil(n / BLOCK_K) steps:
//
//     [second joined tile, partial] [first joined tile] [full tiles of A] [full tiles of B]
//
// Where range A is kept, its full tiles and the first joined tile (if rows of A are in it) lie in the kept pairs:
// successive steps, in the order of the pairs.
#pragma once
#include "common/tile.h"
#include "forward/hopper/config.h"
#include "forward/hopper/params.h"

namespace hopper {

// One (tile, head), as its loaders see it.
template <class C>
struct Plan {
    Tile tile;
    int head, key_head;
    int full_a, full_b;  // tiles
    int tail_a, tail_b;  // rows
    int joined;          // tiles of the joined tails, 0 ... 2
    bool keeps;

    DEVICE Plan(const KernelParams& p, int i) {
        const int item = p.shares.order[i];
        tile = load_tile(p.forward.tiles, item / p.forward.heads);
        head = item % p.forward.heads;
        key_head = head / p.forward.group;
        full_a = (tile.a_end - tile.a) / C::kBlockK;
        full_b = (tile.b_end - tile.b) / C::kBlockK;
        tail_a = (tile.a_end - tile.a) % C::kBlockK;
        tail_b = (tile.b_end - tile.b) % C::kBlockK;
        joined = (tail_a + tail_b + C::kBlockK - 1) / C::kBlockK;
        keeps = full_a + (tail_a > 0) <= p.shares.kept_pairs;
    }

    DEVICE int steps() const { return joined + full_a + full_b; }
    DEVICE int kept_steps() const { return keeps ? full_a + (tail_a > 0) : 0; }
    // Tiles that go through the ring: joined ones before the kept steps, full ones after them.
    DEVICE int ring_joined() const { return joined - (keeps && tail_a > 0); }
    DEVICE int ring_full() const { return full_b + (keeps ? 0 : full_a); }
    // Keys of step 0; every other step has BLOCK_K.
    DEVICE int first_keys() const { return joined ? tail_a + tail_b - (joined - 1) * C::kBlockK : C::kBlockK; }
};

// What lies in the kept pairs.
struct KeptKeys {
    int key_head = -1;
    int a, a_end, b_end, tail_b;

    template <class C>
    DEVICE bool has_range_a(const Plan<C>& plan) const {
        return key_head == plan.key_head && a == plan.tile.a && a_end == plan.tile.a_end;
    }
    template <class C>
    DEVICE bool has_joined_tail(const Plan<C>& plan) const {
        return has_range_a(plan) && b_end == plan.tile.b_end && tail_b == plan.tail_b;
    }
    template <class C>
    DEVICE void set(const Plan<C>& plan) {
        *this = {plan.key_head, plan.tile.a, plan.tile.a_end, plan.tile.b_end, plan.tail_b};
    }
};

template <class C>
DEVICE Item item_of(const Plan<C>& plan) {
    return {.row = plan.tile.row,
            .row_end = plan.tile.row_end,
            .slot = plan.tile.slot,
            .head = plan.head,
            .steps = plan.steps(),
            .first_keys = plan.first_keys(),
            .kept_begin = plan.ring_joined(),
            .kept_end = plan.ring_joined() + plan.kept_steps()};
}

// Position in a ring of buffers. A consumer waits for `phase` of "full", a producer for the other one of "empty".
struct Ring {
    int slots;
    int slot = 0;
    uint32_t phase = 0;

    DEVICE void advance() {
        if (++slot == slots) {
            slot = 0;
            phase ^= 1;
        }
    }
};

}  // namespace hopper
