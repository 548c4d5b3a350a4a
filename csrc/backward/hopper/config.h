// Tiles of the wgmma gradient kernel (sm_90a), and what lies where in a block's shared memory. Chosen from registers
// and shared memory as ptxas shows them; never timed.
#pragma once
#include <algorithm>

#include "backward/params.h"
#include "common/tile.h"
#include "common/visit.h"

namespace hopper {

// One owner's half of the kernel.
template <class Element_, int kHeadDim_, Owner kOwner_, int kWalked_>
struct GradientConfig {
    using Element = Element_;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr Owner kOwner = kOwner_;
    static constexpr int kWalked = kWalked_;  // rows per step
    static_assert(kHeadDim % 64 == 0, "whole panels");

    // One warpgroup copies; each of the others owns 64 rows of the gradients, the M of wgmma, so that P and dS go from
    // one product into the next in its registers.
    static constexpr int kConsumers = 2;
    static constexpr int kOwned = 64 * kConsumers;
    static constexpr int kCopyThreads = 128;

    // Products of 64 x 64 with both operands in shared memory read all that it can give. The left one fits into
    // registers where the gradients are narrow.
    static constexpr bool kOwnInRegisters = kOwner == Owner::keys && kHeadDim == 64 && kWalked <= 64;

    // Matrices lie in panels of 64 columns, rows of 128 bytes, whose 16-byte chunks trade places as wgmma's 128-byte
    // swizzle has them do. The pattern repeats every eight rows.
    template <int kRows>
    static constexpr int kPanelBytes = kRows * 128;
    template <int kRows>
    static constexpr int kBytes = kPanelBytes<kRows> * (kHeadDim / 64);
    template <int kRows>
    DEVICE static uint32_t at(int row, int column) {
        return column / 64 * kPanelBytes<kRows> + row * 128 + ((column % 64 / 8 ^ row % 8) * 16);
    }
};

// Both halves: steps of both go through the same ring of kStages, matrices of rows owned through one of kPlaces.
template <class Queries_, class Keys_, int kStages_, int kPlaces_, int kCopyRegisters_>
struct GradientPair {
    using Queries = Queries_;
    using Keys = Keys_;
    static constexpr int kStages = kStages_;
    static constexpr int kPlaces = kPlaces_;
    // What is copied next is said to have landed when the copies after it have begun. Those may wait for a place that
    // is free only when something has been read which has not been said to be there:
    static_assert(kStages >= 2, "a step waits for the one that had its place");
    static_assert(kPlaces >= 3, "and so does a matrix; with two, it would wait for the step before it");

    static constexpr int kConsumers = Keys::kConsumers;
    static constexpr int kCopyThreads = Keys::kCopyThreads;
    static constexpr int kThreads = kCopyThreads + 128 * kConsumers;
    // Per thread. The copying warpgroup gives up what the accumulators of the others need.
    static constexpr int kCopyRegisters = kCopyRegisters_;
    static constexpr int kConsumerRegisters = (65536 / 128 - kCopyRegisters) / kConsumers / 8 * 8;

    // Shared memory: items and barriers, statistics of the steps, matrices owned, steps. Whatever is swizzled starts on
    // a multiple of 1024 bytes.
    static constexpr int kStatsBytes = Keys::kWalked * 8;
    static constexpr int kPlaceBytes = Keys::template kBytes<Keys::kOwned>;
    static constexpr int kStageBytes =
        2 * std::max(Queries::template kBytes<Queries::kWalked>, Keys::template kBytes<Keys::kWalked>);
    static constexpr int kOwnBytes = (512 + kStages * kStatsBytes + 1023) / 1024 * 1024;
    static constexpr int kStagesBytes = kOwnBytes + kPlaces * kPlaceBytes;
    static constexpr int kSharedBytes = kStagesBytes + kStages * kStageBytes;
    static_assert(kSharedBytes <= 227 * 1024, "more shared memory than a block can have");
};

template <class Element, int kHeadDim>
struct GradientPairOf;

// With 128 rows of queries per step, S, dP, dk and dv need more registers than there are.
template <class Element>
struct GradientPairOf<Element, 64> : GradientPair<GradientConfig<Element, 64, Owner::queries, 128>,
                                                  GradientConfig<Element, 64, Owner::keys, 64>, 4, 4, 40> {};

// dk and dv alone are 128 registers: with 232 ptxas serialises wgmma. Three matrices of rows owned and four stages are
// all the shared memory there is.
template <class Element>
struct GradientPairOf<Element, 128> : GradientPair<GradientConfig<Element, 128, Owner::queries, 64>,
                                                   GradientConfig<Element, 128, Owner::keys, 64>, 4, 3, 24> {};

using GradientWidths = ExactWidths<64, 128>;

// A tile and head whose gradients a block makes, as the copying warps tell the others.
struct GradientItem {
    Tile tile;
    int head;
    Owner owner;
};

// What lies where in shared memory. mbarriers are 8 bytes each: "full": copied. "empty": no longer read.
template <class P>
struct GradientShared {
    static constexpr int kItems = 3, kBarriers = 256;
    static_assert(kItems * sizeof(GradientItem) <= kBarriers && (P::kPlaces + P::kStages) * 16 <= 256);

    uint32_t base;

    // An item is written when a matrix of the second one before it is free: its rows may still be stored.
    DEVICE GradientItem& item(int i) const {
        return reinterpret_cast<GradientItem*>(dev::dynamic_shared())[i % kItems];
    }
    DEVICE uint32_t own_full(int place) const { return base + kBarriers + 16 * place; }
    DEVICE uint32_t own_empty(int place) const { return own_full(place) + 8; }
    DEVICE uint32_t full(int stage) const { return own_full(P::kPlaces + stage); }
    DEVICE uint32_t empty(int stage) const { return full(stage) + 8; }

    DEVICE uint32_t own(int place) const { return base + P::kOwnBytes + place * P::kPlaceBytes; }
    DEVICE uint32_t stage(int stage) const { return base + P::kStagesBytes + stage * P::kStageBytes; }
    DEVICE uint32_t stats_offset(int stage) const { return 512 + stage * P::kStatsBytes; }
};

}  // namespace hopper
