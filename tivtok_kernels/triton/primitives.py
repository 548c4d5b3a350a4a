# ruff: noqa: N803 (constants and tensors of kernels in capitals)
"""The named steps that the kernels are written in.

Names: ``i_`` index, ``o_`` offset, ``p_`` pointer, ``b_`` block in registers, ``m_`` mask. A comment above every load
gives the shape of the block.

Row strides and head strides arrive in units of `STRIDE_UNIT` elements: the compiler then knows that every row starts
on a 16-byte boundary, for any head_dim that is a multiple of 8, and copies tiles asynchronously. Row numbers fit 32
bits; element offsets are 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tivtok_kernels import tensors

STRIDE_UNIT: tl.constexpr = tl.constexpr(tensors.STRIDE_UNIT)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(TILES, i_tile):
    """One entry of a work list: row, row end, A, A end, B, B end, slot, in_tiv (see `schedule.WorkList`)."""
    p_tile = TILES + i_tile.to(tl.int64) * 8
    return (
        tl.load(p_tile),
        tl.load(p_tile + 1),
        tl.load(p_tile + 2),
        tl.load(p_tile + 3),
        tl.load(p_tile + 4),
        tl.load(p_tile + 5),
        tl.load(p_tile + 6),
        tl.load(p_tile + 7),
    )


@triton.jit
def row_pointer(base, row, row_stride, i_head, head_stride):
    """The first element of head ``i_head`` in row ``row`` (a number or a block of them)."""
    return base + row.to(tl.int64) * (row_stride * STRIDE_UNIT) + i_head.to(tl.int64) * (head_stride * STRIDE_UNIT)


@triton.jit
def block_offsets(ROWS: tl.constexpr, row_stride, BLOCK_D: tl.constexpr):
    """Element offsets of a [ROWS, BLOCK_D] block from its first row."""
    return tl.arange(0, ROWS)[:, None] * (row_stride * STRIDE_UNIT) + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def head_rows(p_rows, BLOCK_D: tl.constexpr):
    """Pointers of a [rows, BLOCK_D] block from those of its rows."""
    return p_rows[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def tile_pointers(
    X, x_row, x_head, X_TIV, t_row, t_head, in_tiv, row, i_head,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, TIV_APART: tl.constexpr,
):  # fmt: skip
    """[ROWS, BLOCK_D] pointers from row ``row`` on: of X_TIV where the tensors are apart and ``in_tiv``, else of X."""
    p_row = row_pointer(X, row, x_row, i_head, x_head)
    if TIV_APART:
        p_row = tl.where(in_tiv, row_pointer(X_TIV, row, t_row, i_head, t_head), p_row)
        x_row = tl.where(in_tiv, t_row, x_row)
    return p_row + block_offsets(ROWS, x_row, BLOCK_D)


@triton.jit
def gathered_pointers(
    X, x_row, x_head, X_TIV, t_row, t_head, in_tiv, rows, i_head, BLOCK_D: tl.constexpr, TIV_APART: tl.constexpr
):
    """`tile_pointers` of any rows: ``rows`` and ``in_tiv`` are blocks."""
    p_rows = row_pointer(X, rows, x_row, i_head, x_head)
    if TIV_APART:
        p_rows = tl.where(in_tiv, row_pointer(X_TIV, rows, t_row, i_head, t_head), p_rows)
    return head_rows(p_rows, BLOCK_D)


@triton.jit
def load_full(p_block, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D], every row in range; a mask only where head_dim is no power of two."""
    if D == BLOCK_D:
        return tl.load(p_block)
    else:
        return tl.load(p_block, mask=tl.arange(0, BLOCK_D)[None, :] < D, other=0.0)


@triton.jit
def load_masked(p_block, m_rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] with zeros, whatever memory holds, in the rows that ``m_rows`` leaves out."""
    if D == BLOCK_D:
        return tl.load(p_block, mask=m_rows[:, None], other=0.0)
    else:
        return tl.load(p_block, mask=m_rows[:, None] & (tl.arange(0, BLOCK_D)[None, :] < D), other=0.0)


@triton.jit
def store_masked(p_block, b_block, m_rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    if D == BLOCK_D:
        tl.store(p_block, b_block, mask=m_rows[:, None])
    else:
        tl.store(p_block, b_block, mask=m_rows[:, None] & (tl.arange(0, BLOCK_D)[None, :] < D))


@triton.jit
def full_tile_row(j, n_a, a_start, b_start, BLOCK: tl.constexpr):
    """First row of the j-th full tile, those of range A before those of range B."""
    return tl.where(j < n_a, a_start + j * BLOCK, b_start + (j - n_a) * BLOCK)


@triton.jit
def tail_rows(j, a_end, a_tail, b_end, b_tail, BLOCK: tl.constexpr):
    """The j-th tile of what full tiles leave of both ranges, joined end to end: rows, which are of A, which exist."""
    o_row = j * BLOCK + tl.arange(0, BLOCK)
    m_a = o_row < a_tail
    rows = tl.where(m_a, a_end - a_tail + o_row, b_end - b_tail + (o_row - a_tail))
    return rows, m_a, o_row < a_tail + b_tail


@triton.jit
def online_softmax_update(
    b_q, b_k, b_v, b_max, b_sum, b_acc, scale, m_keys, MASKED: tl.constexpr, PRECISION: tl.constexpr
):
    """One key tile of softmax(scale * q k^T) v in base 2: ``scale`` >= 0 carries log2(e).

    The running maximum ``b_max`` is of scaled scores; scale and maximum enter each exponent as one multiply-add.
    """
    # [BLOCK_Q, BLOCK_K]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    if MASKED:
        b_s = tl.where(m_keys[None, :], b_s * scale, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new_max[:, None])
    else:
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1) * scale)
        b_p = tl.exp2(b_s * scale - b_new_max[:, None])
    b_decay = tl.exp2(b_max - b_new_max)
    b_sum = b_sum * b_decay + tl.sum(b_p, 1)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision=PRECISION)
    return b_new_max, b_sum, b_acc
