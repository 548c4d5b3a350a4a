// Entries of the work lists that tivtok_kernels/schedule.py makes (WorkList.tiles, WorkList.merges).
#pragma once
#include "common/device.h"

// Rows that a block owns, and the ranges of the other side that it walks. In the forward and in dq the rows are queries
// and the ranges keys; in dk and dv it is the other way round.
struct Tile {
    int row, row_end;
    int a, a_end;
    int b, b_end;
    int slot;    // of its partial result, -1 if the result is final
    int in_tiv;  // 1: the rows are of the TIV tensor (dk and dv with the TIV keys apart)
};

// A tile cut into `slots` pieces, whose partial results lie in slots [slot, slot + slots).
struct Merge {
    int row, row_end;
    int slot, slots;
    int in_tiv;
};

// tiles: int32 (tiles, 8), 16-byte aligned.
DEVICE Tile load_tile(const int* tiles, int i_tile) {
    const int4* p_tile = reinterpret_cast<const int4*>(tiles) + 2 * static_cast<int64_t>(i_tile);
    const int4 lo = p_tile[0], hi = p_tile[1];
    return {
        .row = lo.x, .row_end = lo.y, .a = lo.z, .a_end = lo.w, .b = hi.x, .b_end = hi.y, .slot = hi.z, .in_tiv = hi.w};
}

DEVICE Merge load_merge(const int* merges, int i_merge) {
    const int4* p_merge = reinterpret_cast<const int4*>(merges) + 2 * static_cast<int64_t>(i_merge);
    const int4 lo = p_merge[0], hi = p_merge[1];
    return {.row = lo.x, .row_end = lo.y, .slot = lo.z, .slots = lo.w, .in_tiv = hi.x};
}
