# ruff: noqa: N803 (constants and tensors of kernels in capitals)
"""Backward kernels: delta, dK and dV by tiles of keys, dQ by tiles of queries (docs/kernels/triton-backward.md).

With S = scale q k^T, P = exp(S - LSE), dP = dO v^T:

    dV = P^T dO        dS = P * (dP - delta)        dK = scale dS^T q        dQ = scale dS k
    delta = rowsum(dO * O) - dLSE

No program adds to what another one wrote, so gradients repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tivtok_kernels.triton.primitives import (
    LOG2_E,
    STRIDE_UNIT,
    block_offsets,
    full_tile_row,
    gathered_pointers,
    head_rows,
    load_full,
    load_masked,
    load_tile,
    row_pointer,
    store_masked,
    tail_rows,
    tile_pointers,
)

# Of both large kernels: one program serves all of their values.
INTEGERS = ["heads", "stat_head", "q_row", "q_head", "k_row", "k_head", "v_row", "v_head"]
INTEGERS += ["kt_row", "kt_head", "vt_row", "vt_head", "do_row", "do_head"]

DELTA_ROWS = 32  # rows per program of `delta_kernel`


@triton.jit(do_not_specialize=["rows", "stat_head", "heads", "do_row", "do_head"])
def delta_kernel(
    OUT,  # (N, H, D) contiguous
    DO,  # (N, H, D)
    LSE,  # float32 (N, H) contiguous
    DLSE,  # the same, unused without HAS_DLSE
    LSE2,  # float32 (H, N padded): LSE in base 2
    DELTA,  # float32 (H, N padded)
    rows,
    stat_head,
    heads,
    do_row,
    do_head,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_DLSE: tl.constexpr,
):
    """Program (rows, head): delta and base-2 LSE, transposed so that the other kernels read them as vectors."""
    i_h = tl.program_id(0) % heads
    i_row = tl.program_id(0) // heads * ROWS
    m_rows = i_row + tl.arange(0, ROWS) < rows
    o_rows = (i_row.to(tl.int64) + tl.arange(0, ROWS)) * heads + i_h
    # [ROWS, BLOCK_D]
    b_out = load_masked(head_rows(OUT + o_rows * D, BLOCK_D), m_rows, D, BLOCK_D).to(tl.float32)
    p_do = row_pointer(DO, i_row, do_row, i_h, do_head) + block_offsets(ROWS, do_row, BLOCK_D)
    b_do = load_masked(p_do, m_rows, D, BLOCK_D).to(tl.float32)
    b_delta = tl.sum(b_out * b_do, 1)
    if HAS_DLSE:
        b_delta -= tl.load(DLSE + o_rows, mask=m_rows, other=0.0)
    o_stat = i_h.to(tl.int64) * (stat_head * STRIDE_UNIT) + i_row + tl.arange(0, ROWS)
    tl.store(LSE2 + o_stat, tl.load(LSE + o_rows, mask=m_rows, other=0.0) * LOG2_E, mask=m_rows)
    tl.store(DELTA + o_stat, b_delta, mask=m_rows)


@triton.jit
def key_gradient_update(b_k, b_v, b_q, b_do, b_lse, b_delta, b_dk, b_dv, scale, PRECISION: tl.constexpr):
    """One query tile's part in dK / scale and dV; ``scale`` carries log2(e), ``b_lse`` is in base 2.

    A query row that is out of range comes as zeros with an LSE of +inf: its P is 0.
    """
    # [BLOCK_K, BLOCK_Q]
    b_p = tl.exp2(tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * scale - b_lse[None, :])
    b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
    b_ds = b_p * (tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION) - b_delta[None, :])
    b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit(do_not_specialize=INTEGERS)
def key_gradient_kernel(
    Q,  # (N, H, D)
    K,  # (M, Hk, D), as V
    V,
    K_TIV,  # (TIV rows, Hk, D), as V_TIV: tiles marked in_tiv, else unused
    V_TIV,
    DO,  # (N, H, D)
    LSE2,  # float32 (H, N padded), as DELTA
    DELTA,
    DK,  # contiguous (M, Hk, D), as DV
    DV,
    DK_TIV,  # contiguous (TIV rows, Hk, D), as DV_TIV
    DV_TIV,
    PART_DK,  # float32 (slots, Hk, BLOCK_K, BLOCK_D), as PART_DV
    PART_DV,
    TILES,  # int32 (tiles, 8)
    scale,  # of scores
    heads,  # key heads
    stat_head,
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
    do_row,
    do_head,
    GROUP: tl.constexpr,  # query heads per key head
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    TIV_APART: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, key head): dK and dV of BLOCK_K rows from one piece of the query ranges that see them."""
    i_kh = tl.program_id(0) % heads
    row, row_end, a, a_end, b, b_end, slot, in_tiv = load_tile(TILES, tl.program_id(0) // heads)
    m_k = row + tl.arange(0, BLOCK_K) < row_end
    apart = in_tiv != 0
    # [BLOCK_K, BLOCK_D]
    p_k = tile_pointers(K, k_row, k_head, K_TIV, kt_row, kt_head, apart, row, i_kh, BLOCK_K, BLOCK_D, TIV_APART)
    p_v = tile_pointers(V, v_row, v_head, V_TIV, vt_row, vt_head, apart, row, i_kh, BLOCK_K, BLOCK_D, TIV_APART)
    b_k = load_masked(p_k, m_k, D, BLOCK_D)
    b_v = load_masked(p_v, m_k, D, BLOCK_D)

    b_dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    scale2 = scale * LOG2_E
    n_a = (a_end - a) // BLOCK_Q
    n_b = (b_end - b) // BLOCK_Q
    a_tail = (a_end - a) - n_a * BLOCK_Q
    b_tail = (b_end - b) - n_b * BLOCK_Q
    # One loop over (step, query head of the group), heads running fastest: a loop per head would hold the registers of
    # both loops at once, and spill.
    i_h0 = i_kh * GROUP
    for j in tl.range(0, (n_a + n_b) * GROUP, num_stages=STAGES):
        i_h = i_h0 + j % GROUP
        i_m = full_tile_row(j // GROUP, n_a, a, b, BLOCK_Q)
        # [BLOCK_Q, BLOCK_D], [BLOCK_Q]
        b_q = load_full(row_pointer(Q, i_m, q_row, i_h, q_head) + block_offsets(BLOCK_Q, q_row, BLOCK_D), D, BLOCK_D)
        p_do = row_pointer(DO, i_m, do_row, i_h, do_head) + block_offsets(BLOCK_Q, do_row, BLOCK_D)
        b_do = load_full(p_do, D, BLOCK_D)
        o_stat = i_h.to(tl.int64) * (stat_head * STRIDE_UNIT) + i_m + tl.arange(0, BLOCK_Q)
        b_lse = tl.load(LSE2 + o_stat)
        b_delta = tl.load(DELTA + o_stat)
        b_dk, b_dv = key_gradient_update(b_k, b_v, b_q, b_do, b_lse, b_delta, b_dk, b_dv, scale2, PRECISION)
    for j in tl.range(0, tl.cdiv(a_tail + b_tail, BLOCK_Q) * GROUP, num_stages=1):
        i_h = i_h0 + j % GROUP
        i_m, _, m_q = tail_rows(j // GROUP, a_end, a_tail, b_end, b_tail, BLOCK_Q)
        # [BLOCK_Q, BLOCK_D], [BLOCK_Q]
        b_q = load_masked(head_rows(row_pointer(Q, i_m, q_row, i_h, q_head), BLOCK_D), m_q, D, BLOCK_D)
        b_do = load_masked(head_rows(row_pointer(DO, i_m, do_row, i_h, do_head), BLOCK_D), m_q, D, BLOCK_D)
        o_stat = i_h.to(tl.int64) * (stat_head * STRIDE_UNIT) + i_m
        b_lse = tl.load(LSE2 + o_stat, mask=m_q, other=float("inf"))
        b_delta = tl.load(DELTA + o_stat, mask=m_q, other=0.0)
        b_dk, b_dv = key_gradient_update(b_k, b_v, b_q, b_do, b_lse, b_delta, b_dk, b_dv, scale2, PRECISION)

    b_dk *= scale
    if slot < 0:
        o_rows = (row.to(tl.int64) + tl.arange(0, BLOCK_K)) * heads + i_kh
        p_dk = tl.where(apart, DK_TIV, DK) if TIV_APART else DK
        p_dv = tl.where(apart, DV_TIV, DV) if TIV_APART else DV
        store_masked(head_rows(p_dk + o_rows * D, BLOCK_D), b_dk.to(DK.dtype.element_ty), m_k, D, BLOCK_D)
        store_masked(head_rows(p_dv + o_rows * D, BLOCK_D), b_dv.to(DV.dtype.element_ty), m_k, D, BLOCK_D)
    else:
        o_rows = (slot.to(tl.int64) * heads + i_kh) * BLOCK_K + tl.arange(0, BLOCK_K)
        tl.store(head_rows(PART_DK + o_rows * BLOCK_D, BLOCK_D), b_dk)
        tl.store(head_rows(PART_DV + o_rows * BLOCK_D, BLOCK_D), b_dv)


@triton.jit
def query_gradient_update(
    b_q, b_do, b_lse, b_delta, b_k, b_v, b_dq, scale, m_keys, MASKED: tl.constexpr, PRECISION: tl.constexpr
):
    """One key tile's part in dQ / scale; ``scale`` carries log2(e), ``b_lse`` is in base 2."""
    # [BLOCK_Q, BLOCK_K]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale - b_lse[:, None]
    if MASKED:  # exp2(-lse) of a zeroed key may overflow, and inf * 0 is NaN
        b_s = tl.where(m_keys[None, :], b_s, float("-inf"))
    b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_ds = tl.exp2(b_s) * (b_dp - b_delta[:, None])
    return tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=INTEGERS)
def query_gradient_kernel(
    Q,  # (N, H, D)
    K,  # (M, Hk, D), as V
    V,
    K_TIV,  # (TIV rows, Hk, D), as V_TIV: range A with TIV_APART, else unused
    V_TIV,
    DO,  # (N, H, D)
    LSE2,  # float32 (H, N padded), as DELTA
    DELTA,
    DQ,  # contiguous (N, H, D)
    PART_DQ,  # float32 (slots, H, BLOCK_Q, BLOCK_D)
    TILES,  # int32 (tiles, 8)
    scale,  # of scores
    heads,
    stat_head,
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
    do_row,
    do_head,
    GROUP: tl.constexpr,  # query heads per key head
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    TIV_APART: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, head): dQ of BLOCK_Q rows from one piece of their ranges A and B."""
    i_h = tl.program_id(0) % heads
    row, row_end, a, a_end, b, b_end, slot, _ = load_tile(TILES, tl.program_id(0) // heads)
    i_kh = i_h // GROUP
    m_q = row + tl.arange(0, BLOCK_Q) < row_end
    # [BLOCK_Q, BLOCK_D], [BLOCK_Q]
    p_q = row_pointer(Q, row, q_row, i_h, q_head) + block_offsets(BLOCK_Q, q_row, BLOCK_D)
    b_q = load_masked(p_q, m_q, D, BLOCK_D)
    p_do = row_pointer(DO, row, do_row, i_h, do_head) + block_offsets(BLOCK_Q, do_row, BLOCK_D)
    b_do = load_masked(p_do, m_q, D, BLOCK_D)
    o_stat = i_h.to(tl.int64) * (stat_head * STRIDE_UNIT) + row + tl.arange(0, BLOCK_Q)
    b_lse = tl.load(LSE2 + o_stat, mask=m_q, other=float("inf"))
    b_delta = tl.load(DELTA + o_stat, mask=m_q, other=0.0)

    b_dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    scale2 = scale * LOG2_E
    n_a = (a_end - a) // BLOCK_K
    n_b = (b_end - b) // BLOCK_K
    for j in tl.range(0, n_a + n_b, num_stages=STAGES):
        i_n = full_tile_row(j, n_a, a, b, BLOCK_K)
        p_k = tile_pointers(K, k_row, k_head, K_TIV, kt_row, kt_head, j < n_a, i_n, i_kh, BLOCK_K, BLOCK_D, TIV_APART)
        p_v = tile_pointers(V, v_row, v_head, V_TIV, vt_row, vt_head, j < n_a, i_n, i_kh, BLOCK_K, BLOCK_D, TIV_APART)
        # [BLOCK_K, BLOCK_D]
        b_k = load_full(p_k, D, BLOCK_D)
        b_v = load_full(p_v, D, BLOCK_D)
        b_dq = query_gradient_update(b_q, b_do, b_lse, b_delta, b_k, b_v, b_dq, scale2, None, False, PRECISION)

    a_tail = (a_end - a) - n_a * BLOCK_K
    b_tail = (b_end - b) - n_b * BLOCK_K
    for j in tl.range(0, tl.cdiv(a_tail + b_tail, BLOCK_K), num_stages=1):
        i_n, m_a, m_k = tail_rows(j, a_end, a_tail, b_end, b_tail, BLOCK_K)
        p_k = gathered_pointers(K, k_row, k_head, K_TIV, kt_row, kt_head, m_a, i_n, i_kh, BLOCK_D, TIV_APART)
        p_v = gathered_pointers(V, v_row, v_head, V_TIV, vt_row, vt_head, m_a, i_n, i_kh, BLOCK_D, TIV_APART)
        # [BLOCK_K, BLOCK_D]
        b_k = load_masked(p_k, m_k, D, BLOCK_D)
        b_v = load_masked(p_v, m_k, D, BLOCK_D)
        b_dq = query_gradient_update(b_q, b_do, b_lse, b_delta, b_k, b_v, b_dq, scale2, m_k, True, PRECISION)

    b_dq *= scale
    if slot < 0:
        o_rows = (row.to(tl.int64) + tl.arange(0, BLOCK_Q)) * heads + i_h
        store_masked(head_rows(DQ + o_rows * D, BLOCK_D), b_dq.to(DQ.dtype.element_ty), m_q, D, BLOCK_D)
    else:
        o_rows = (slot.to(tl.int64) * heads + i_h) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        tl.store(head_rows(PART_DQ + o_rows * BLOCK_D, BLOCK_D), b_dq)
