# ruff: noqa: N803 (constants and tensors of kernels in capitals)
"""The forward kernel: one launch for every row of a packed batch (docs/kernels/triton-forward.md)."""

from __future__ import annotations

import triton
import triton.language as tl

from tivtok_kernels.triton.primitives import (
    LN_2,
    block_offsets,
    full_tile_row,
    gathered_pointers,
    head_rows,
    load_full,
    load_masked,
    load_tile,
    online_softmax_update,
    row_pointer,
    store_masked,
    tail_rows,
    tile_pointers,
)

# One program serves all of their values.
INTEGERS = ["heads", "q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "kt_row", "kt_head", "vt_row", "vt_head"]


@triton.jit
def attend(
    Q, K, V, K_TIV, V_TIV, OUT, LSE, PART_OUT, PART_LSE, scale, heads, i_h, i_kh,
    row, row_end, a, a_end, b, b_end, slot,
    q_row, q_head, k_row, k_head, v_row, v_head, kt_row, kt_head, vt_row, vt_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PART_ROWS: tl.constexpr,
    STAGES: tl.constexpr, TIV_APART: tl.constexpr, NEGATIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """softmax(q k^T) v of up to BLOCK_Q rows over one piece of their ranges A and B."""
    m_q = row + tl.arange(0, BLOCK_Q) < row_end
    # [BLOCK_Q, BLOCK_D]
    p_q = row_pointer(Q, row, q_row, i_h, q_head) + block_offsets(BLOCK_Q, q_row, BLOCK_D)
    b_q = load_masked(p_q, m_q, D, BLOCK_D)
    if NEGATIVE:  # the running maximum needs a scale >= 0
        b_q = -b_q
        scale = -scale

    b_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    b_acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)

    n_a = (a_end - a) // BLOCK_K
    n_b = (b_end - b) // BLOCK_K
    for j in tl.range(0, n_a + n_b, num_stages=STAGES):
        i_n = full_tile_row(j, n_a, a, b, BLOCK_K)
        p_k = tile_pointers(K, k_row, k_head, K_TIV, kt_row, kt_head, j < n_a, i_n, i_kh, BLOCK_K, BLOCK_D, TIV_APART)
        p_v = tile_pointers(V, v_row, v_head, V_TIV, vt_row, vt_head, j < n_a, i_n, i_kh, BLOCK_K, BLOCK_D, TIV_APART)
        # [BLOCK_K, BLOCK_D]
        b_k = load_full(p_k, D, BLOCK_D)
        b_v = load_full(p_v, D, BLOCK_D)
        b_max, b_sum, b_acc = online_softmax_update(b_q, b_k, b_v, b_max, b_sum, b_acc, scale, None, False, PRECISION)

    a_tail = (a_end - a) - n_a * BLOCK_K
    b_tail = (b_end - b) - n_b * BLOCK_K
    for j in tl.range(0, tl.cdiv(a_tail + b_tail, BLOCK_K), num_stages=1):
        i_n, m_a, m_k = tail_rows(j, a_end, a_tail, b_end, b_tail, BLOCK_K)
        p_k = gathered_pointers(K, k_row, k_head, K_TIV, kt_row, kt_head, m_a, i_n, i_kh, BLOCK_D, TIV_APART)
        p_v = gathered_pointers(V, v_row, v_head, V_TIV, vt_row, vt_head, m_a, i_n, i_kh, BLOCK_D, TIV_APART)
        # [BLOCK_K, BLOCK_D]
        b_k = load_masked(p_k, m_k, D, BLOCK_D)
        b_v = load_masked(p_v, m_k, D, BLOCK_D)
        b_max, b_sum, b_acc = online_softmax_update(b_q, b_k, b_v, b_max, b_sum, b_acc, scale, m_k, True, PRECISION)

    b_acc = b_acc / b_sum[:, None]
    b_lse = b_max + tl.log2(b_sum)
    if slot < 0:
        o_rows = (row.to(tl.int64) + tl.arange(0, BLOCK_Q)) * heads + i_h
        store_masked(head_rows(OUT + o_rows * D, BLOCK_D), b_acc.to(OUT.dtype.element_ty), m_q, D, BLOCK_D)
        tl.store(LSE + o_rows, b_lse * LN_2, mask=m_q)
    else:
        o_rows = (slot.to(tl.int64) * heads + i_h) * PART_ROWS + tl.arange(0, BLOCK_Q)
        tl.store(head_rows(PART_OUT + o_rows * BLOCK_D, BLOCK_D), b_acc)
        tl.store(PART_LSE + o_rows, b_lse)


@triton.jit(do_not_specialize=INTEGERS)
def forward_kernel(
    Q,  # (N, H, D)
    K,  # (M, Hk, D), as V
    V,
    K_TIV,  # (TIV rows, Hk, D), as V_TIV: range A with TIV_APART, else unused
    V_TIV,
    OUT,  # (N, H, D) contiguous
    LSE,  # float32 (N, H) contiguous
    PART_OUT,  # float32 (slots, H, BLOCK_Q, BLOCK_D)
    PART_LSE,  # float32 (slots, H, BLOCK_Q), in base 2
    TILES,  # int32 (tiles, 8)
    scale,  # of scores in base 2
    heads,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    kt_row,
    kt_head,
    vt_row,
    vt_head,
    GROUP: tl.constexpr,  # query heads per key head
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    SHORT_Q: tl.constexpr,  # height of tiles that it suffices for, 0 for none
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    TIV_APART: tl.constexpr,
    NEGATIVE: tl.constexpr,  # the sign of the scale: known only at run time it would keep Q in registers
    PRECISION: tl.constexpr,
):
    """Program (tile, head); a tile that is at most half full runs at half the height."""
    i_h = tl.program_id(0) % heads
    row, row_end, a, a_end, b, b_end, slot, _ = load_tile(TILES, tl.program_id(0) // heads)
    if SHORT_Q == 0 or row_end - row > SHORT_Q:
        attend(
            Q, K, V, K_TIV, V_TIV, OUT, LSE, PART_OUT, PART_LSE, scale, heads, i_h, i_h // GROUP,
            row, row_end, a, a_end, b, b_end, slot,
            q_row, q_head, k_row, k_head, v_row, v_head, kt_row, kt_head, vt_row, vt_head,
            D, BLOCK_D, BLOCK_Q, BLOCK_K, BLOCK_Q, STAGES, TIV_APART, NEGATIVE, PRECISION,
        )  # fmt: skip
    else:
        attend(
            Q, K, V, K_TIV, V_TIV, OUT, LSE, PART_OUT, PART_LSE, scale, heads, i_h, i_h // GROUP,
            row, row_end, a, a_end, b, b_end, slot,
            q_row, q_head, k_row, k_head, v_row, v_head, kt_row, kt_head, vt_row, vt_head,
            D, BLOCK_D, SHORT_Q, BLOCK_K, BLOCK_Q, STAGES, TIV_APART, NEGATIVE, PRECISION,
        )  # fmt: skip
