// A consumer warpgroup: 64 query rows, products by wgmma with the scores of the next step in flight beside the output
// of this one, softmax in between.
#pragma once
#include "forward/hopper/softmax.h"
#include "forward/hopper/steps.h"

namespace hopper {

constexpr int kTurnBarrier = 2;  // named barriers, one per consumer warpgroup

DEVICE int lane() { return threadIdx.x % 32; }
// By a shuffle, so that the compiler knows it to be the same for all lanes: what depends on it is computed once per
// warp.
DEVICE int consumer_group() { return static_cast<int>(dev::shfl_idx(threadIdx.x / kWarpgroup, 0)) - 1; }

// Each warp signs for itself: its own reads are over.
DEVICE void release(uint32_t empty) {
    if (lane() == 0) dev::mbar_arrive(empty);
}

// Descriptor of a tile's first part; others lie `bytes` further.
DEVICE uint64_t tile_descriptor(uint32_t address, uint32_t panel_bytes) {
    return dev::wgmma_descriptor(address, panel_bytes, 8 * kPanelRowBytes, dev::Swizzle::b128);
}

// Warpgroups take turns in issuing products, so that the softmax of one runs beside the products of another.
template <class C>
struct Turns {
    static constexpr int kThreads = 2 * kWarpgroup;
    int group;

    DEVICE void wait() const { dev::bar_sync(kTurnBarrier + group, kThreads); }
    DEVICE void pass() const { dev::bar_arrive(kTurnBarrier + (group + 1) % C::kConsumers, kThreads); }
};

// Where the keys of a step lie.
struct Step {
    int pair;
    uint32_t phase;  // of the barriers that say "loaded"
};

// The steps of an item, in order.
template <class C>
struct Steps {
    const Shared<C>& shared;
    const Item& item;
    Ring& ring;

    DEVICE Step next() {
        const Step step{ring.slot, ring.phase};
        ring.advance();
        return step;
    }
    DEVICE uint64_t keys(Step s) const { return tile_descriptor(shared.key(s.pair), 0); }
    DEVICE uint64_t values(Step s) const { return tile_descriptor(shared.value(s.pair), Shared<C>::kKeyPanel); }
    DEVICE void wait_key(Step s) const { dev::mbar_wait(shared.key_full(s.pair), s.phase); }
    DEVICE void wait_value(Step s) const { dev::mbar_wait(shared.value_full(s.pair), s.phase); }
    DEVICE void release_key(Step s) const { release(shared.key_empty(s.pair)); }
    DEVICE void release_value(Step s) const { release(shared.value_empty(s.pair)); }
};

// scores = q k^T, 64 x BLOCK_K.
template <class C>
DEVICE void issue_scores(float (&scores)[C::kBlockK / 2], uint64_t queries, uint64_t keys) {
    dev::wgmma_hold(scores);
    dev::wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kHeadDim / 16; ++i) {
        const int panel = i / 4, o_column = i % 4 * 32;
        dev::wgmma_ss<typename C::Element>(scores,
                                           dev::wgmma_advanced(queries, panel * Shared<C>::kQueryPanel + o_column),
                                           dev::wgmma_advanced(keys, panel * Shared<C>::kKeyPanel + o_column), i > 0);
    }
    dev::wgmma_commit();
}

// out += weights v, 64 x D.
template <class C>
DEVICE void issue_output(float (&out)[C::kHeadDim / 2], const uint32_t (&weights)[C::kBlockK / 16][4],
                         uint64_t values) {
    dev::wgmma_hold(out);
    dev::wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kBlockK / 16; ++i)
        dev::wgmma_rs<typename C::Element, dev::Major::MN>(out, weights[i],
                                                           dev::wgmma_advanced(values, i * 16 * kPanelRowBytes), true);
    dev::wgmma_commit();
}

// The maximum needs a scale >= 0; the sign goes to the queries, which is exact. The barrier of the next turn lets the
// warpgroup see all of it.
template <class C>
DEVICE void negate_queries(uint32_t o_queries) {
    uint4* p_queries = reinterpret_cast<uint4*>(dev::dynamic_shared() + o_queries);
    for (uint32_t i = threadIdx.x % kWarpgroup; i < Shared<C>::kQueryTile / 16; i += kWarpgroup) {
        const uint4 x = p_queries[i];
        p_queries[i] = {x.x ^ 0x80008000u, x.y ^ 0x80008000u, x.z ^ 0x80008000u, x.w ^ 0x80008000u};
    }
    dev::fence_proxy_async();
}

// Keys that do not exist score -inf: in box `box` of a step those from `rows` on.
template <class C>
DEVICE void hide_keys(float (&scores)[C::kBlockK / 2], int box, int rows) {
    constexpr int kOfBox = C::kBoxRows / 2;  // scores of a thread
#pragma unroll
    for (int i = 0; i < kOfBox; ++i)
        if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= rows) scores[box * kOfBox + i] = dev::neg_inf();
}

template <class C>
DEVICE void hide_keys_of_step_0(float (&scores)[C::kBlockK / 2], const Item& item) {
#pragma unroll
    for (int box = 0; box < C::kBlockK / C::kBoxRows; ++box)
        hide_keys<C>(scores, box, box >= item.first_boxes ? 0 : box < 2 ? item.rows[box] : C::kBoxRows);
}

// softmax(q k^T) v of this warpgroup's rows. Signs off the queries when the last scores are made.
template <class C>
DEVICE void attend(float (&out)[C::kHeadDim / 2], RowSoftmax& softmax, Steps<C>& steps, const Turns<C>& turns,
                   uint64_t queries, uint32_t query_empty) {
    const int n = steps.item.steps;
    float scores[C::kBlockK / 2];
    uint32_t weights[C::kBlockK / 16][4];

    Step now = steps.next();
    steps.wait_key(now);
    turns.wait();
    issue_scores<C>(scores, queries, steps.keys(now));
    turns.pass();
    dev::wgmma_wait<0>();
    dev::wgmma_hold(scores);
    steps.release_key(now);
    if (n == 1) release(query_empty);
    float decay[2];
    hide_keys_of_step_0<C>(scores, steps.item);
    softmax.next(scores, decay);
    dev::pack_operand<typename C::Element>(weights, scores);
    steps.wait_value(now);

    for (int j = 1; j < n; ++j) {
        const Step next = steps.next();
        steps.wait_key(next);
        turns.wait();
        issue_scores<C>(scores, queries, steps.keys(next));
        issue_output<C>(out, weights, steps.values(now));
        turns.pass();
        dev::wgmma_wait<1>();
        dev::wgmma_hold(scores);
        steps.release_key(next);
        if (j == n - 1) release(query_empty);
        if (j == 1 && steps.item.first_boxes == 1) hide_keys<C>(scores, 0, steps.item.rows[1]);
        softmax.next(scores, decay);
        dev::wgmma_hold(scores);
        // A loop, over which ptxas moves no wait: the exponentials run beside the output product.
        steps.wait_value(next);
        dev::wgmma_wait<0>();
        dev::wgmma_hold(out);
        steps.release_value(now);
#pragma unroll
        for (int i = 0; i < C::kHeadDim / 2; ++i) out[i] *= decay[i / 2 % 2];
        dev::pack_operand<typename C::Element>(weights, scores);
        now = next;
    }

    issue_output<C>(out, weights, steps.values(now));
    dev::wgmma_wait<0>();
    dev::wgmma_hold(out);
    steps.release_value(now);
}

// A warpgroup without rows in a tile: takes its turns and signs every buffer off.
template <class C>
DEVICE void pass_over(Steps<C>& steps, const Turns<C>& turns, uint32_t query_empty) {
    release(query_empty);
    for (int j = 0; j < steps.item.steps; ++j) {
        const Step step = steps.next();
        turns.wait();
        turns.pass();
        steps.wait_key(step);
        steps.release_key(step);
        steps.wait_value(step);
        steps.release_value(step);
    }
}

// A 4x4 transpose over each quad: thread t of it ends with word t of each of the four threads.
DEVICE void quad_transpose(uint32_t (&r)[4]) {
#pragma unroll
    for (int stride = 1; stride <= 2; stride *= 2) {
        const bool upper = threadIdx.x & stride;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & stride) continue;
            const uint32_t received = dev::shfl_xor(upper ? r[i] : r[i + stride], stride);
            (upper ? r[i] : r[i + stride]) = received;
        }
    }
}

// Rows of the tile only: what lies behind them belongs to other items. Results go from registers to memory: after a
// transpose over the quad it writes 64 contiguous bytes, and the query buffer is free for the next item meanwhile.
template <class C>
DEVICE void store_rows(const ForwardParams& p, const Item& item, int group, float (&out)[C::kHeadDim / 2],
                       RowSoftmax& softmax) {
    const int t = threadIdx.x % 4, o_row = group * kGroupRows + threadIdx.x % kWarpgroup / 32 * 16 + lane() / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float norm;
        const float lse = softmax.finish(r, norm);
        const int i_row = o_row + 8 * r, row = item.row + i_row;
        const bool inside = row < item.row_end;
        if (item.slot < 0) {
            const int64_t o_head = static_cast<int64_t>(row) * p.heads + item.head;
            if (inside && t == 0) p.lse[o_head] = lse * dev::kLn2;
            uint16_t* p_out = static_cast<uint16_t*>(p.out) + o_head * C::kHeadDim;
#pragma unroll
            for (int c = 0; c < C::kHeadDim / 8; c += 4) {
                uint32_t words[4];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    words[i] = dev::pack<typename C::Element>(out[4 * (c + i) + 2 * r] * norm,
                                                              out[4 * (c + i) + 2 * r + 1] * norm);
                quad_transpose(words);
                if (inside) *reinterpret_cast<uint4*>(p_out + 8 * (c + t)) = {words[0], words[1], words[2], words[3]};
            }
        } else if (inside) {
            const int64_t o_part = (static_cast<int64_t>(item.slot) * p.heads + item.head) * C::kBlockQ + i_row;
            if (t == 0) p.part_lse[o_part] = lse;
            float* p_out = p.part_out + o_part * C::kHeadDim + 2 * t;
#pragma unroll
            for (int c = 0; c < C::kHeadDim / 8; ++c)
                *reinterpret_cast<float2*>(p_out + 8 * c) = {out[4 * c + 2 * r] * norm, out[4 * c + 2 * r + 1] * norm};
        }
    }
}

// All items of the block; one warpgroup. The end of the list is read again every time: it costs a register less.
template <class C>
DEVICE void consume(const KernelParams& p, const Shared<C>& shared) {
    const ForwardParams& f = p.forward;
    Ring ring{C::kPairs}, queries{C::kQueryBuffers};
    const int group = consumer_group();
    const Turns<C> turns{group};
    if (group == C::kConsumers - 1) turns.pass();
    for (int i = p.shares.bounds[blockIdx.x]; i < p.shares.bounds[blockIdx.x + 1]; ++i) {
        dev::mbar_wait(shared.query_full(queries.slot), queries.phase);
        const Item& item = shared.item(i);
        __syncwarp();  // one lane will sign for what all have read
        const uint32_t query_empty = shared.query_empty(queries.slot);
        Steps<C> steps{shared, item, ring};
        if (item.row + group * kGroupRows >= item.row_end) {
            pass_over(steps, turns, query_empty);
        } else {
            const uint32_t tile = shared.query(queries.slot, group);
            if (f.scale < 0) negate_queries<C>(tile - shared.base);
            float out[C::kHeadDim / 2] = {};
            // Never 0, which makes a hidden key's -inf NaN; all weights are 1 with the smallest scale as well.
            const float scale = fabsf(f.scale) * dev::kLog2E;
            RowSoftmax softmax{scale < __FLT_MIN__ ? __FLT_MIN__ : scale};
            if (item.steps > 0)
                attend(out, softmax, steps, turns, tile_descriptor(tile, 0), query_empty);
            else
                release(query_empty);
            store_rows<C>(f, item, group, out, softmax);
        }
        queries.advance();
    }
}

}  // namespace hopper
