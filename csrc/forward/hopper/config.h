// Tiles of the Hopper forward kernel, and what lies where in a block's shared memory.
#pragma once
#include "common/device.h"

namespace hopper {

constexpr int kWarpgroup = 128;    // threads
constexpr int kGroupRows = 64;     // query rows of a consumer warpgroup: the M of wgmma
constexpr int kPanelColumns = 64;  // a panel is 64 columns of a tile: 128 bytes per row, the width of the swizzle
constexpr int kPanelRowBytes = 128;

template <class Element_, int kHeadDim_, int kBlockK_, int kQueryBuffers_, int kPairs_>
struct ForwardConfig {
    using Element = Element_;
    static constexpr int kHeadDim = kHeadDim_;  // 64 or 128
    static constexpr int kPanels = kHeadDim / kPanelColumns;
    static constexpr int kBlockK = kBlockK_;  // keys per step
    static constexpr int kQueryBuffers = kQueryBuffers_;
    static constexpr int kPairs = kPairs_;  // of K and V tiles, a ring
    static_assert(kPairs >= 2, "one would deadlock: the next V is awaited before this one is signed off");

    static constexpr int kConsumers = 2;  // warpgroups
    static constexpr int kBlockQ = kConsumers * kGroupRows;
    static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
    // Of 65536 registers: 168 each at the start; the producer gives up what the consumers' accumulators need. 40 spill.
    static constexpr int kProducerRegisters = 56;
    static constexpr int kConsumerRegisters = 224;
};

template <class Element, int kHeadDim>
struct ForwardConfigOf;

// Two query buffers: the next item's queries load while the present ones are still multiplied. Steps of 192 keys take
// 11 % fewer instructions per key than those of 128, and the presets' keys fill as many of either.
template <class Element>
struct ForwardConfigOf<Element, 64> : ForwardConfig<Element, 64, 192, 2, 4> {};

// No room for a second query buffer beside three pairs; 160 keys spill.
template <class Element>
struct ForwardConfigOf<Element, 128> : ForwardConfig<Element, 128, 128, 1, 3> {};

// One (tile, head), as its consumers see it.
struct Item {
    int row, row_end, slot, head;
    int steps, first_keys;  // keys of step 0; every other step has BLOCK_K
};

// Shared memory: barriers and items, then queries, then K/V pairs. Tiles are stored panel by panel.
template <class C>
struct Shared {
    static constexpr uint32_t kQueryPanel = kGroupRows * kPanelRowBytes;
    static constexpr uint32_t kQueryTile = C::kPanels * kQueryPanel;  // of one warpgroup
    static constexpr uint32_t kKeyPanel = C::kBlockK * kPanelRowBytes;
    static constexpr uint32_t kKeyTile = C::kPanels * kKeyPanel;

    static constexpr uint32_t kItems = 512;
    static constexpr uint32_t kQueries = 1024;  // the swizzle pattern repeats every 1024 bytes
    static constexpr uint32_t kKeys = kQueries + C::kQueryBuffers * C::kConsumers * kQueryTile;
    static constexpr uint32_t kBytes = kKeys + C::kPairs * 2 * kKeyTile;
    static_assert(kBytes <= 227 * 1024, "more shared memory than a block can have");

    uint32_t base;

    // One per query buffer.
    DEVICE Item* items() const { return reinterpret_cast<Item*>(dev::dynamic_shared() + kItems); }
    DEVICE uint32_t query(int buffer, int group) const {
        return base + kQueries + (buffer * C::kConsumers + group) * kQueryTile;
    }
    DEVICE uint32_t key(int pair) const { return base + kKeys + pair * 2 * kKeyTile; }
    DEVICE uint32_t value(int pair) const { return key(pair) + kKeyTile; }

    // mbarriers, 8 bytes each. "full": loaded. "empty": no longer read.
    DEVICE uint32_t query_full(int buffer) const { return base + 16 * buffer; }
    DEVICE uint32_t query_empty(int buffer) const { return query_full(buffer) + 8; }
    DEVICE uint32_t key_full(int pair) const { return base + 64 + 32 * pair; }
    DEVICE uint32_t key_empty(int pair) const { return key_full(pair) + 8; }
    DEVICE uint32_t value_full(int pair) const { return key_full(pair) + 16; }
    DEVICE uint32_t value_empty(int pair) const { return key_full(pair) + 24; }
};

}  // namespace hopper
