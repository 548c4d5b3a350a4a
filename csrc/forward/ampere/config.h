// Tiles of the Ampere forward kernel. Chosen from registers, spills and shared memory as ptxas reports them; never
// timed.
#pragma once
#include "common/visit.h"

namespace ampere {

template <class Element_, int kHeadDim_, int kRowTiles_, int kBlockK_, int kRing_, int kBlocksPerSm_, int kWarps_ = 4>
struct ForwardConfig {
    using Element = Element_;
    static constexpr int kHeadDim = kHeadDim_;  // columns in shared memory; narrower heads are padded with zeros
    static constexpr int kRowTiles =
        kRowTiles_;                           // 16-row products per warp: each fragment of K or V serves all of them
    static constexpr int kBlockK = kBlockK_;  // keys per step
    static constexpr int kRing = kRing_;      // tiles of K or V in shared memory, all but one of them in flight
    static_assert(kRing >= 2, "a turn copies to where the last one was");
    static constexpr int kBlocksPerSm = kBlocksPerSm_;

    static constexpr int kWarps = kWarps_;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kWarpRows = 16 * kRowTiles;
    static constexpr int kBlockQ = kWarpRows * kWarps;
    static constexpr int kLanesPerRow = kHeadDim % 64 == 0 ? 8 : 4;  // threads side by side on one row, 16 bytes each

    // Rows 16 bytes longer than their data: eight in a row start in eight different groups of banks, so ldmatrix has no
    // conflicts, and addresses are sums with constants, where a swizzle would cost a tenth of all instructions.
    static constexpr int kPitch = 2 * kHeadDim + 16;  // bytes
    static_assert(kHeadDim % 32 == 0);
    static constexpr int kTileBytes = (kBlockQ + kRing * kBlockK) * kPitch;
    static constexpr int kSharedBytes = kTileBytes + 64;  // and where the rows of K and of V lie

    // Fragments of Q that fit beside the accumulators stay in registers; wider ones are read again for every step.
    static constexpr bool kKeepQ = kHeadDim <= 64;
};

// With 32 rows per warp one ldmatrix of K or V feeds four products: with 16, shared memory (128 bytes per clock) would
// be as busy as the tensor cores of sm_80. Two blocks of four warps share an SM and cover each other's softmax: 255
// registers per thread, and up to 64 columns 45 KiB of shared memory, which fits twice on sm_86 too.
template <class Element, int kHeadDim>
struct ForwardConfigOf : ForwardConfig<Element, kHeadDim, 2, 64, 3, 2> {};

// Steps of 64 keys spill. 72 KiB of shared memory: twice on sm_80, once on sm_86.
template <class Element>
struct ForwardConfigOf<Element, 128> : ForwardConfig<Element, 128, 2, 48, 3, 2> {};

using ForwardWidths = PaddedWidths<32, 64, 128>;

}  // namespace ampere
