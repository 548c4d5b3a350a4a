// Tiles of the wgmma gradient kernels (sm_90a). Chosen from registers and shared memory as ptxas shows them; never
// timed.
#pragma once
#include "backward/params.h"
#include "common/visit.h"

namespace hopper {

template <class Element_, int kHeadDim_, Owner kOwner_, int kWalked_, int kStages_, int kCopyRegisters_>
struct GradientConfig {
    using Element = Element_;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr Owner kOwner = kOwner_;
    static constexpr int kWalked = kWalked_;  // rows per step
    static constexpr int kStages = kStages_;  // steps in shared memory
    static constexpr int kBlocksPerSm = 1;
    static_assert(kHeadDim % 64 == 0, "whole panels");
    static_assert(kStages >= 2, "a step is signed when the copies of the next one have begun");

    // One warpgroup copies; each of the others owns 64 rows of the gradients, the M of wgmma, so that P and dS go from
    // one product into the next in its registers.
    static constexpr int kConsumers = 2;
    static constexpr int kOwned = 64 * kConsumers;
    static constexpr int kCopyThreads = 128;
    static constexpr int kThreads = kCopyThreads + 128 * kConsumers;
    // Per thread. The copying warpgroup gives up what the accumulators of the others need.
    static constexpr int kCopyRegisters = kCopyRegisters_;
    static constexpr int kConsumerRegisters = (65536 / 128 - kCopyRegisters) / kConsumers / 8 * 8;

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

    static constexpr int kStageBytes =
        (2 * kBytes<kWalked> + (kOwner == Owner::keys ? kWalked * 8 : 0) + 1023) / 1024 * 1024;
    // Barriers, the rows owned, the stages; whatever is swizzled starts on a multiple of 1024 bytes.
    static constexpr int kOwnBytes = 1024;
    static constexpr int kStagesBytes = kOwnBytes + 2 * kBytes<kOwned>;
    static constexpr int kSharedBytes = kStagesBytes + kStages * kStageBytes;
    static_assert(kSharedBytes <= 227 * 1024, "more shared memory than a block can have");
};

template <class Element, int kHeadDim, Owner kOwner>
struct GradientConfigOf;

template <class Element>
struct GradientConfigOf<Element, 64, Owner::queries> : GradientConfig<Element, 64, Owner::queries, 128, 3, 40> {};

// With 128 rows per step, S, dP, dk and dv need more registers than there are.
template <class Element>
struct GradientConfigOf<Element, 64, Owner::keys> : GradientConfig<Element, 64, Owner::keys, 64, 4, 40> {};

template <class Element>
struct GradientConfigOf<Element, 128, Owner::queries> : GradientConfig<Element, 128, Owner::queries, 64, 4, 40> {};

// dk and dv alone are 128 registers: with 232 ptxas serialises wgmma.
template <class Element>
struct GradientConfigOf<Element, 128, Owner::keys> : GradientConfig<Element, 128, Owner::keys, 64, 4, 24> {};

using GradientWidths = ExactWidths<64, 128>;

}  // namespace hopper
