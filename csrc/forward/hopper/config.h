// Tiles of the Hopper forward kernel, and what lies where in a block's shared memory.
#pragma once
#include "common/visit.h"

namespace hopper {

constexpr int kWarpgroup = 128;    // threads
constexpr int kGroupRows = 64;     // query rows of a consumer warpgroup: the M of wgmma
constexpr int kPanelColumns = 64;  // a panel is 64 columns of a tile: 128 bytes per row, the width of the swizzle
constexpr int kPanelRowBytes = 128;

template <class Element_, int kHeadDim_, int kBlockK_, int kQueryBuffers_, int kPairs_, int kConsumers_ = 3,
          int kBoxRows_ = 32>
struct ForwardConfig {
    using Element = Element_;
    static constexpr int kHeadDim = kHeadDim_;  // 64 or 128
    static constexpr int kPanels = kHeadDim / kPanelColumns;
    static constexpr int kBlockK = kBlockK_;  // keys per step
    static constexpr int kQueryBuffers = kQueryBuffers_;
    static constexpr int kPairs = kPairs_;  // of K and V tiles, a ring
    static_assert(kPairs >= 2, "one would deadlock: the next V is awaited before this one is signed off");

    // Keys are loaded by so many where a range ends. The TIV tokens of all presets fill whole boxes.
    static constexpr int kBoxRows = kBoxRows_;
    static_assert(kBlockK % kBoxRows == 0 && kBoxRows % 8 == 0, "the swizzle repeats every 8 rows");

    static constexpr int kConsumers = kConsumers_;  // warpgroups
    static constexpr int kBlockQ = kConsumers * kGroupRows;
    static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
    // Of 65536 registers: the producer gives up what the consumers' accumulators need.
    static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
    static constexpr int kConsumerRegisters = (65536 / kWarpgroup - kProducerRegisters) / kConsumers / 8 * 8;
};

template <class Element, int kHeadDim>
struct ForwardConfigOf;

// Two query buffers: the next item's queries load while the present ones are still multiplied. Three consumers have 160
// registers each, which is what bounds the keys per step: accumulators of 64 x BLOCK_K and 64 x head_dim, and weights.
template <class Element>
struct ForwardConfigOf<Element, 64> : ForwardConfig<Element, 64, 128, 2, 5> {};

template <class Element>
struct ForwardConfigOf<Element, 128> : ForwardConfig<Element, 128, 64, 2, 4> {};

using ForwardWidths = ExactWidths<64, 128>;

// One (tile, head), as its consumers see it.
struct Item {
    int row, row_end, slot, head;
    int steps, first_boxes;  // boxes of step 0; every other step has BLOCK_K / kBoxRows
    int rows[2];             // keys in the first two boxes; every other one has kBoxRows
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

    // Items whose queries are loaded, and the one before them: its rows may still be stored.
    DEVICE Item& item(int i) const {
        return reinterpret_cast<Item*>(dev::dynamic_shared() + kItems)[i % (C::kQueryBuffers + 1)];
    }
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
