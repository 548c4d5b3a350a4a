// The producer: one thread loads all queries and keys by TMA.
#pragma once
#include "forward/hopper/steps.h"

namespace hopper {

// `rows` of one head from `row` on, and zeros in the rest of a box of kBox rows; the bytes count towards `full`.
template <class C, int kBox>
DEVICE void load_rows(uint32_t destination, uint32_t panel_bytes, const dev::TensorMap* map, uint32_t full, int head,
                      int row, int rows) {
#pragma unroll
    for (int i = 0; i < C::kPanels; ++i)
        dev::tma_load_4d(destination + i * panel_bytes, map, full, i * kPanelColumns, head, kBox - rows, row + rows);
}

template <class C>
DEVICE void load_queries(const KernelParams& p, const Shared<C>& shared, const Plan<C>& plan, Item& item,
                         Ring& queries) {
    const uint32_t full = shared.query_full(queries.slot);
    dev::mbar_wait(shared.query_empty(queries.slot), queries.phase ^ 1);
    item = item_of(plan);
    dev::mbar_arrive_expect_tx(full, C::kConsumers * Shared<C>::kQueryTile);
    for (int group = 0; group < C::kConsumers; ++group) {
        const int row = plan.tile.row + group * kGroupRows;
        load_rows<C, kGroupRows>(shared.query(queries.slot, group), Shared<C>::kQueryPanel, &p.q, full, plan.head, row,
                                 max(0, min(kGroupRows, plan.tile.row_end - row)));
    }
    queries.advance();
}

// The keys or values of a step: boxes `i` ... of which `boxes` exist.
template <class C>
DEVICE void load_step(uint32_t destination, const KeyMaps& range_a, const KeyMaps& range_b, uint32_t full,
                      const Plan<C>& plan, int i, int boxes) {
    dev::mbar_arrive_expect_tx(full, Shared<C>::kKeyTile);
    if (boxes == Plan<C>::kBoxes && plan.is_tile(i)) {
        const Box box = plan.box(i);
        load_rows<C, C::kBlockK>(destination, Shared<C>::kKeyPanel, &(box.in_a ? range_a : range_b).tile, full,
                                 plan.key_head, box.row, C::kBlockK);
        return;
    }
    for (int b = 0; b < Plan<C>::kBoxes; ++b) {
        const Box box = b < boxes ? plan.box(i + b) : Box{};
        load_rows<C, C::kBoxRows>(destination + b * C::kBoxRows * kPanelRowBytes, Shared<C>::kKeyPanel,
                                  &(box.in_a ? range_a : range_b).box, full, plan.key_head, box.row, box.rows);
    }
}

// All items of the block; one thread.
template <class C>
DEVICE void produce(const KernelParams& p, const Shared<C>& shared) {
    Ring queries{C::kQueryBuffers}, ring{C::kPairs};
    for (int i = p.shares.bounds[blockIdx.x]; i < p.shares.bounds[blockIdx.x + 1]; ++i) {
        const Plan<C> plan(p, i);
        load_queries(p, shared, plan, shared.item(i), queries);
        for (int begin = 0, boxes = plan.first_boxes(); begin < plan.boxes(); begin += boxes, boxes = plan.kBoxes) {
            dev::mbar_wait(shared.key_empty(ring.slot), ring.phase ^ 1);
            load_step<C>(shared.key(ring.slot), p.k_tiv, p.k, shared.key_full(ring.slot), plan, begin, boxes);
            dev::mbar_wait(shared.value_empty(ring.slot), ring.phase ^ 1);
            load_step<C>(shared.value(ring.slot), p.v_tiv, p.v, shared.value_full(ring.slot), plan, begin, boxes);
            ring.advance();
        }
    }
}

}  // namespace hopper
