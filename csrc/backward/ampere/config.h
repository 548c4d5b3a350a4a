// Tiles of the mma.sync gradient kernels (sm_80 and newer). Chosen from registers, spills and shared memory traffic as
// ptxas and the instructions show them; never timed.
#pragma once
#include "backward/params.h"
#include "common/visit.h"

namespace ampere {

template <class Element_, int kHeadDim_, Owner kOwner_, int kRowTiles_, int kWalked_, int kBlocksPerSm_,
          int kWarps_ = 4>
struct GradientConfig {
    using Element = Element_;
    static constexpr int kHeadDim = kHeadDim_;  // columns in shared memory; narrower heads are padded with zeros
    static constexpr Owner kOwner = kOwner_;
    static constexpr int kRowTiles = kRowTiles_;  // 16-row products per warp: each right fragment serves all of them
    static constexpr int kWalked = kWalked_;      // rows per step
    static constexpr int kBlocksPerSm = kBlocksPerSm_;

    // A warp owns whole rows of the gradients, so that P and dS go from one product into the next in its registers.
    static constexpr int kWarps = kWarps_;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kCopyThreads = kThreads;
    static constexpr int kWarpRows = 16 * kRowTiles;
    static constexpr int kOwned = kWarpRows * kWarps;
    static constexpr int kStages = 2;

    // Rows 16 bytes longer than their data: eight in a row start in eight different groups of banks, so ldmatrix has no
    // conflicts, and addresses are sums with constants, which the exclusive-or of a swizzle is not.
    static constexpr int kPitch = 2 * kHeadDim + 16;  // bytes
    static_assert(kHeadDim % 16 == 0, "an even number of 16-byte columns, or the pitch would not be odd in them");

    template <int kRows>
    static constexpr int kBytes = kRows * kPitch;  // of a matrix
    template <int kRows>
    DEVICE static uint32_t at(int row, int column) {
        return row * kPitch + column * 2;
    }

    static constexpr int kStatsBytes = kOwner == Owner::keys ? kWalked * 8 : 0;
    static constexpr int kStageBytes = 2 * kBytes<kWalked> + kStatsBytes;
    static constexpr int kSharedBytes = 2 * kBytes<kOwned> + kStages * kStageBytes;
};

// Up to 64 columns a warp owns 32 rows: one ldmatrix then feeds four products, where with 16 rows shared memory (128
// bytes per clock) would be as busy as the tensor cores of sm_80. Wider gradients leave registers for 16 rows only: dk
// and dv of 32 would spill, and for dq the tiles of a block would not fit into the 100 KiB of sm_86.
template <class Element, int kHeadDim, Owner kOwner>
using GradientConfigOf = GradientConfig<Element, kHeadDim, kOwner, kHeadDim <= 64 ? 2 : 1, 32, 2>;

using GradientWidths = PaddedWidths<32, 64, 128>;

}  // namespace ampere
