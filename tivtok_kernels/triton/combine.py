# ruff: noqa: N803 (constants and tensors of kernels in capitals)
"""Second kernels: put the pieces of a split tile together, always in the order of the work list.

A kernel of its own rather than the last program to arrive: no atomics, no counters to reset between calls, nothing that
an interpreter without concurrency could not check, and no registers taken from the main loops. It is launched only
where the work list has splits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tivtok_kernels.triton.primitives import LN_2, head_rows, store_masked

MERGE_ROWS = 16  # rows per program: many small programs, since there are few split tiles


@triton.jit
def load_merge(MERGES, i_merge):
    """One entry of `schedule.WorkList.merges`: row, row end, first slot, slots, in_tiv."""
    p_merge = MERGES + i_merge.to(tl.int64) * 8
    return tl.load(p_merge), tl.load(p_merge + 1), tl.load(p_merge + 2), tl.load(p_merge + 3), tl.load(p_merge + 4)


@triton.jit(do_not_specialize=["heads"])
def merge_outputs_kernel(
    PART_OUT,  # float32 (slots, H, BLOCK, BLOCK_D)
    PART_LSE,  # float32 (slots, H, BLOCK), in base 2
    OUT,  # (N, H, D) contiguous
    LSE,  # float32 (N, H) contiguous
    MERGES,  # int32 (merges, 8)
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (merge, rows, head): out = sum_i 2^(lse_i - lse) out_i, lse = log2 sum_i 2^lse_i."""
    i_h = tl.program_id(0) % heads
    i_rows = tl.program_id(0) // heads % (BLOCK // ROWS) * ROWS
    row, row_end, slot, slots, _ = load_merge(MERGES, tl.program_id(0) // heads // (BLOCK // ROWS))

    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for i in range(slots):
        o_rows = ((slot + i).to(tl.int64) * heads + i_h) * BLOCK + i_rows + tl.arange(0, ROWS)
        # [ROWS], [ROWS, BLOCK_D]
        b_lse = tl.load(PART_LSE + o_rows)
        b_out = tl.load(head_rows(PART_OUT + o_rows * BLOCK_D, BLOCK_D))
        b_new_max = tl.maximum(b_max, b_lse)
        b_decay = tl.exp2(b_max - b_new_max)
        b_weight = tl.exp2(b_lse - b_new_max)
        b_acc = b_acc * b_decay[:, None] + b_out * b_weight[:, None]
        b_sum = b_sum * b_decay + b_weight
        b_max = b_new_max

    i_row = row + i_rows + tl.arange(0, ROWS)
    o_rows = i_row.to(tl.int64) * heads + i_h
    b_acc = (b_acc / b_sum[:, None]).to(OUT.dtype.element_ty)
    store_masked(head_rows(OUT + o_rows * D, BLOCK_D), b_acc, i_row < row_end, D, BLOCK_D)
    tl.store(LSE + o_rows, (b_max + tl.log2(b_sum)) * LN_2, mask=i_row < row_end)


@triton.jit(do_not_specialize=["heads"])
def sum_gradients_kernel(
    PART,  # float32 (slots, H, BLOCK, BLOCK_D)
    GRAD,  # (rows, H, D) contiguous
    GRAD_TIV,  # the same for tiles of the TIV tensor, unused without such
    MERGES,  # int32 (merges, 8)
    heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (merge, rows, head): the gradient of a split tile, the sum of its pieces."""
    i_h = tl.program_id(0) % heads
    i_rows = tl.program_id(0) // heads % (BLOCK // ROWS) * ROWS
    row, row_end, slot, slots, in_tiv = load_merge(MERGES, tl.program_id(0) // heads // (BLOCK // ROWS))

    b_acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for i in range(slots):
        o_rows = ((slot + i).to(tl.int64) * heads + i_h) * BLOCK + i_rows + tl.arange(0, ROWS)
        # [ROWS, BLOCK_D]
        b_acc += tl.load(head_rows(PART + o_rows * BLOCK_D, BLOCK_D))

    i_row = row + i_rows + tl.arange(0, ROWS)
    p_rows = tl.where(in_tiv != 0, GRAD_TIV, GRAD) + (i_row.to(tl.int64) * heads + i_h) * D
    store_masked(head_rows(p_rows, BLOCK_D), b_acc.to(GRAD.dtype.element_ty), i_row < row_end, D, BLOCK_D)
