// The steps of an item: which keys, in which order, and where in shared memory.
//
// Full tiles of range A and of range B come by TMA. What is left of both is copied row by row as if it lay end to end,
// into one or two tiles that come first: the masked step is then always step 0, and the main loop needs no mask.
// An item with n keys takes ceil(n / BLOCK_K) steps:
//
//     [second joined tile, partial] [first joined tile] [full tiles of A] [full tiles of B]
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
    }

    DEVICE int steps() const { return joined + full_a + full_b; }
    // Keys of step 0; every other step has BLOCK_K.
    DEVICE int first_keys() const { return joined ? tail_a + tail_b - (joined - 1) * C::kBlockK : C::kBlockK; }
};

template <class C>
DEVICE Item item_of(const Plan<C>& plan) {
    return {plan.tile.row, plan.tile.row_end, plan.tile.slot, plan.head, plan.steps(), plan.first_keys()};
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
