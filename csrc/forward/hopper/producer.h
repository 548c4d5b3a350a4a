// The producer warpgroup: one thread loads whole tiles by TMA, three warps copy the joined tails row by row.
#pragma once
#include "forward/hopper/steps.h"

namespace hopper {

constexpr int kCopyThreads = 96;
constexpr int kCopyBarrier = 1;  // named barrier of the copying warps

// Slots that the other loader fills. Both wait for and sign every slot: a loader that the ring got a round ahead of, or
// that got two ahead of it, would take the phase of one round for that of another. One thread signs, once the values
// are done with: keys are earlier.
template <class C>
DEVICE void pass_over_slots(const Shared<C>& shared, Ring& ring, int count, bool signs) {
    for (int i = 0; i < count; ++i) {
        if (signs) {
            dev::mbar_wait(shared.value_empty(ring.slot), ring.phase ^ 1);
            dev::mbar_arrive(shared.key_full(ring.slot));
            dev::mbar_arrive(shared.value_full(ring.slot));
        }
        ring.advance();
    }
}

// `rows` of one head from `row` on; the bytes count towards `full`.
template <class C>
DEVICE void load_by_tma(uint32_t destination, uint32_t panel_bytes, const dev::TensorMap* map, uint32_t full, int head,
                        int row) {
#pragma unroll
    for (int i = 0; i < C::kPanels; ++i)
        dev::tma_load_3d(destination + i * panel_bytes, map, full, i * kPanelColumns, head, row);
}

template <class C>
DEVICE void load_queries(const KernelParams& p, const Shared<C>& shared, const Plan<C>& plan, Ring& queries) {
    const uint32_t full = shared.query_full(queries.slot);
    dev::mbar_wait(shared.query_empty(queries.slot), queries.phase ^ 1);
    shared.items()[queries.slot] = item_of(plan);
    dev::mbar_arrive_expect_tx(full, C::kConsumers * Shared<C>::kQueryTile);
    for (int group = 0; group < C::kConsumers; ++group)
        load_by_tma<C>(shared.query(queries.slot, group), Shared<C>::kQueryPanel, &p.q, full, plan.head,
                       plan.tile.row + group * kGroupRows);
    queries.advance();
}

template <class C>
DEVICE void load_ring_tiles(const KernelParams& p, const Shared<C>& shared, const Plan<C>& plan, Ring& ring) {
    for (int t = 0; t < plan.full_a + plan.full_b; ++t) {
        const bool in_a = t < plan.full_a;
        const int row = in_a ? plan.tile.a + t * C::kBlockK : plan.tile.b + (t - plan.full_a) * C::kBlockK;
        const uint32_t key_full = shared.key_full(ring.slot), value_full = shared.value_full(ring.slot);
        dev::mbar_wait(shared.key_empty(ring.slot), ring.phase ^ 1);
        dev::mbar_arrive_expect_tx(key_full, Shared<C>::kKeyTile);
        load_by_tma<C>(shared.key(ring.slot), Shared<C>::kKeyPanel, in_a ? &p.k_tiv : &p.k, key_full, plan.key_head,
                       row);
        dev::mbar_wait(shared.value_empty(ring.slot), ring.phase ^ 1);
        dev::mbar_arrive_expect_tx(value_full, Shared<C>::kKeyTile);
        load_by_tma<C>(shared.value(ring.slot), Shared<C>::kKeyPanel, in_a ? &p.v_tiv : &p.v, value_full, plan.key_head,
                       row);
        ring.advance();
    }
}

// Queries, items and whole tiles of items [first, last) of the order; one thread.
template <class C>
DEVICE void load_whole_tiles(const KernelParams& p, const Shared<C>& shared, int first, int last) {
    Ring queries{C::kQueryBuffers}, ring{C::kPairs};
    for (int i = first; i < last; ++i) {
        const Plan<C> plan(p, i);
        load_queries(p, shared, plan, queries);
        pass_over_slots(shared, ring, plan.joined, true);
        load_ring_tiles(p, shared, plan, ring);
    }
}

// Joined tile `t`, with zeros behind the last key: 0 * NaN would be NaN.
template <class C>
DEVICE void copy_rows(uint32_t destination, const Tensor& range_a, const Tensor& range_b, const Plan<C>& plan, int t) {
    constexpr int kChunks = C::kHeadDim / 8;  // of 16 bytes
    for (int i = threadIdx.x % kWarpgroup - 32; i < C::kBlockK * kChunks; i += kCopyThreads) {
        const int r = i / kChunks, chunk = i % kChunks, o_tail = t * C::kBlockK + r;
        const bool in_a = o_tail < plan.tail_a;
        const int row =
            in_a ? plan.tile.a_end - plan.tail_a + o_tail : plan.tile.b_end - plan.tail_b + o_tail - plan.tail_a;
        const Tensor& x = in_a ? range_a : range_b;
        const uint16_t* source =
            static_cast<const uint16_t*>(x.data) + row * x.row + plan.key_head * x.head + chunk * 8;
        dev::cp_async_16(
            destination + chunk / 8 * Shared<C>::kKeyPanel + r * kPanelRowBytes + ((chunk % 8 ^ r % 8) << 4), source,
            o_tail < plan.tail_a + plan.tail_b);
    }
    dev::cp_async_commit();
}

DEVICE bool signs_copies() { return threadIdx.x == 32; }

// Makes the copies of all copying warps visible to wgmma, then signs `full`.
template <int kPending>
DEVICE void publish_copies(uint32_t full) {
    dev::cp_async_wait<kPending>();
    dev::fence_proxy_async();
    dev::bar_sync(kCopyBarrier, kCopyThreads);
    if (signs_copies()) dev::mbar_arrive(full);
}

// Joined tails of items [first, last) of the order; three warps.
template <class C>
DEVICE void copy_joined_tails(const KernelParams& p, const Shared<C>& shared, int first, int last) {
    const ForwardParams& f = p.forward;
    Ring ring{C::kPairs};
    for (int i = first; i < last; ++i) {
        const Plan<C> plan(p, i);
        for (int t = plan.joined - 1; t >= 0; --t) {
            dev::mbar_wait(shared.key_empty(ring.slot), ring.phase ^ 1);
            copy_rows(shared.key(ring.slot), f.k_tiv, f.k, plan, t);
            dev::mbar_wait(shared.value_empty(ring.slot), ring.phase ^ 1);
            copy_rows(shared.value(ring.slot), f.v_tiv, f.v, plan, t);
            publish_copies<1>(shared.key_full(ring.slot));
            publish_copies<0>(shared.value_full(ring.slot));
            ring.advance();
        }
        pass_over_slots(shared, ring, plan.full_a + plan.full_b, signs_copies());
        dev::bar_sync(kCopyBarrier, kCopyThreads);
    }
}

}  // namespace hopper
