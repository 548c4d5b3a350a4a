# ruff: noqa: N803 (constants and tensors of kernels in capitals)
"""Queries and keys of a fused projection, normalised and rotated in one pass, and its gradient.

    x' = x * rsqrt(mean(x^2) + eps) * w        (head by head, where there are weights)
    y  = [a cos - b sin | a sin + b cos]       a, b the halves of x', where there is a table

A program owns ROWS rows of all query heads or of all key heads: it loads its part of the table and the weights once.
Halves are blocks of their own, so that a pair of the rotation meets in one thread. Nothing but the input is kept for
the backward: a row is cheap to normalise again. Weight gradients leave each program as one float32 row, and rows are
added in fixed order: gradients repeat bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tivtok_kernels.problem import Preparation
from tivtok_kernels.tensors import aligned
from tivtok_kernels.triton.primitives import STRIDE_UNIT

# A rotated element is a product and a multiply-add. Left to itself, ptxas spills registers to fit one program more.
OPTIONS = {"enable_fp_fusion": True, "maxnreg": 128}
MAX_ROW_STRIDE = 1 << 31  # in elements: the kernels take it as a 32-bit number
ELEMENTS = 1024  # of half a head, per block of rows: in 16 bits, a 16-byte access for each thread of 4 warps
BACKWARD_BYTES = 2048  # the same for the backward, which holds twice as much and would spill float32 blocks of 1024


@triton.jit
def load_half(p_rows, side: tl.constexpr, m_half, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """[ROWS, BLOCK_HALF] in float32: the ``side``-th half of the heads at ``p_rows``."""
    return tl.load(p_rows[:, None] + side * HALF + tl.arange(0, BLOCK_HALF)[None, :], mask=m_half, other=0.0).to(
        tl.float32
    )


@triton.jit
def store_half(p_rows, b_half, side: tl.constexpr, m_half, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    tl.store(p_rows[:, None] + side * HALF + tl.arange(0, BLOCK_HALF)[None, :], b_half, mask=m_half)


@triton.jit
def load_weights(Q_WEIGHT, K_WEIGHT, is_key, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """[BLOCK_HALF] twice: the halves of the weights of queries or of keys."""
    o_half = tl.arange(0, BLOCK_HALF)
    p_weight = tl.where(is_key, K_WEIGHT, Q_WEIGHT) + o_half
    b_low = tl.load(p_weight, mask=o_half < HALF, other=0.0)
    return b_low, tl.load(p_weight + HALF, mask=o_half < HALF, other=0.0)


@triton.jit
def load_table(COS, SIN, i_rows, table_rows, m_half, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """[ROWS, BLOCK_HALF] twice: cos and sin; the table starts again after ``table_rows`` rows."""
    o_table = (i_rows % table_rows)[:, None] * HALF + tl.arange(0, BLOCK_HALF)[None, :]
    return tl.load(COS + o_table, mask=m_half, other=1.0), tl.load(SIN + o_table, mask=m_half, other=0.0)


@triton.jit
def inverse_rms(b_low, b_high, eps, D: tl.constexpr):
    """[ROWS, 1] of heads given by their halves."""
    return tl.rsqrt((tl.sum(b_low * b_low, 1) + tl.sum(b_high * b_high, 1)) / D + eps)[:, None]


@triton.jit(do_not_specialize=["rows", "table_rows", "heads", "row_stride"])
def prepare_qk_kernel(
    QK,  # (rows, 2, H, D)
    COS,  # float32 (table rows, D / 2), as SIN
    SIN,
    Q_WEIGHT,  # float32 (D,), as K_WEIGHT
    K_WEIGHT,
    Q,  # (rows, H, D) contiguous, as K
    K,
    rows,
    table_rows,
    heads,
    row_stride,
    eps,
    D: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """Program (rows, query or key)."""
    HALF: tl.constexpr = D // 2
    is_key = tl.program_id(0) % 2 != 0
    i_rows = tl.program_id(0) // 2 * ROWS + tl.arange(0, ROWS)
    m_half = (i_rows < rows)[:, None] & (tl.arange(0, BLOCK_HALF) < HALF)[None, :]
    p_in = QK + i_rows.to(tl.int64) * (row_stride * STRIDE_UNIT) + tl.where(is_key, heads * D, 0)
    p_out = tl.where(is_key, K, Q) + i_rows.to(tl.int64) * (heads * D)
    if NORM:
        b_w_low, b_w_high = load_weights(Q_WEIGHT, K_WEIGHT, is_key, HALF, BLOCK_HALF)
    if ROTATE:
        b_cos, b_sin = load_table(COS, SIN, i_rows, table_rows, m_half, HALF, BLOCK_HALF)
    for i_h in range(heads):
        b_low = load_half(p_in + i_h * D, 0, m_half, HALF, BLOCK_HALF)
        b_high = load_half(p_in + i_h * D, 1, m_half, HALF, BLOCK_HALF)
        if NORM:
            b_scale = inverse_rms(b_low, b_high, eps, D)
            b_low *= b_scale * b_w_low[None, :]
            b_high *= b_scale * b_w_high[None, :]
        if ROTATE:
            b_turned = b_low * b_cos - b_high * b_sin
            b_high = b_low * b_sin + b_high * b_cos
            b_low = b_turned
        store_half(p_out + i_h * D, b_low.to(Q.dtype.element_ty), 0, m_half, HALF, BLOCK_HALF)
        store_half(p_out + i_h * D, b_high.to(Q.dtype.element_ty), 1, m_half, HALF, BLOCK_HALF)


@triton.jit(do_not_specialize=["rows", "table_rows", "heads", "row_stride"])
def prepare_qk_backward_kernel(
    DQ,  # (rows, H, D) contiguous, as DK
    DK,
    QK,  # (rows, 2, H, D)
    COS,  # float32 (table rows, D / 2), as SIN
    SIN,
    Q_WEIGHT,  # float32 (D,), as K_WEIGHT
    K_WEIGHT,
    DQK,  # (rows, 2, H, D) contiguous
    PART_DWEIGHT,  # float32 (blocks of rows, 2, D)
    rows,
    table_rows,
    heads,
    row_stride,
    eps,
    D: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """Program (rows, query or key): rotate back, then with g = dx' * w, r = 1 / rms: dx = r g - r^3 x mean(x g)."""
    HALF: tl.constexpr = D // 2
    is_key = tl.program_id(0) % 2 != 0
    i_rows = tl.program_id(0) // 2 * ROWS + tl.arange(0, ROWS)
    m_half = (i_rows < rows)[:, None] & (tl.arange(0, BLOCK_HALF) < HALF)[None, :]
    o_key = tl.where(is_key, heads * D, 0)
    p_grad = tl.where(is_key, DK, DQ) + i_rows.to(tl.int64) * (heads * D)
    p_in = QK + i_rows.to(tl.int64) * (row_stride * STRIDE_UNIT) + o_key
    p_out = DQK + i_rows.to(tl.int64) * (2 * heads * D) + o_key
    if NORM:
        b_w_low, b_w_high = load_weights(Q_WEIGHT, K_WEIGHT, is_key, HALF, BLOCK_HALF)
        b_dw_low = tl.zeros([ROWS, BLOCK_HALF], tl.float32)
        b_dw_high = tl.zeros([ROWS, BLOCK_HALF], tl.float32)
    if ROTATE:
        b_cos, b_sin = load_table(COS, SIN, i_rows, table_rows, m_half, HALF, BLOCK_HALF)
    for i_h in range(heads):
        b_low = load_half(p_grad + i_h * D, 0, m_half, HALF, BLOCK_HALF)
        b_high = load_half(p_grad + i_h * D, 1, m_half, HALF, BLOCK_HALF)
        if ROTATE:
            b_turned = b_low * b_cos + b_high * b_sin
            b_high = b_high * b_cos - b_low * b_sin
            b_low = b_turned
        if NORM:
            b_x_low = load_half(p_in + i_h * D, 0, m_half, HALF, BLOCK_HALF)
            b_x_high = load_half(p_in + i_h * D, 1, m_half, HALF, BLOCK_HALF)
            b_scale = inverse_rms(b_x_low, b_x_high, eps, D)
            b_x_low *= b_scale
            b_x_high *= b_scale
            b_dw_low += b_low * b_x_low
            b_dw_high += b_high * b_x_high
            b_low *= b_w_low[None, :]
            b_high *= b_w_high[None, :]
            b_mean = ((tl.sum(b_low * b_x_low, 1) + tl.sum(b_high * b_x_high, 1)) / D)[:, None]
            b_low = b_scale * (b_low - b_x_low * b_mean)
            b_high = b_scale * (b_high - b_x_high * b_mean)
        store_half(p_out + i_h * D, b_low.to(DQK.dtype.element_ty), 0, m_half, HALF, BLOCK_HALF)
        store_half(p_out + i_h * D, b_high.to(DQK.dtype.element_ty), 1, m_half, HALF, BLOCK_HALF)
    if NORM:
        o_half = tl.arange(0, BLOCK_HALF)
        p_dw = PART_DWEIGHT + tl.program_id(0).to(tl.int64) * D + o_half
        tl.store(p_dw, tl.sum(b_dw_low, 0), mask=o_half < HALF)
        tl.store(p_dw + HALF, tl.sum(b_dw_high, 0), mask=o_half < HALF)


def constants(head_dim: int, elements: int, norm: bool, rotate: bool) -> dict[str, int | bool]:
    """The compile-time arguments of both kernels, for blocks of ``elements``."""
    block_half = max(4, 1 << (head_dim // 2 - 1).bit_length())
    return {"D": head_dim, "BLOCK_HALF": block_half, "ROWS": elements // block_half, "NORM": norm, "ROTATE": rotate}


def forward(call: Preparation) -> tuple[Tensor, Tensor]:
    """Contiguous q and k (rows, H, D)."""
    qk = _aligned(call.qk)
    q, k = (torch.empty((qk.shape[0], *qk.shape[2:]), dtype=qk.dtype, device=qk.device) for _ in range(2))
    options = constants(qk.shape[-1], ELEMENTS, call.q_weight is not None, call.cos is not None)
    sizes = _sizes(qk, call.cos)
    prepare_qk_kernel[(2 * _blocks(qk, options),)](qk, *_tables(qk, call), q, k, *sizes, call.eps, **options, **OPTIONS)
    return q, k


def backward(call: Preparation, dq: Tensor, dk: Tensor) -> list[Tensor]:
    """The gradient of qk, contiguous, and of both weights where there are any."""
    qk, q_weight, k_weight = _aligned(call.qk), call.q_weight, call.k_weight
    options = constants(qk.shape[-1], BACKWARD_BYTES // qk.element_size(), q_weight is not None, call.cos is not None)
    dqk = torch.empty(qk.shape, dtype=qk.dtype, device=qk.device)
    blocks = _blocks(qk, options)
    part = torch.empty((blocks, 2, qk.shape[-1]), dtype=torch.float32, device=qk.device)
    inputs, sizes = (dq.contiguous(), dk.contiguous(), qk, *_tables(qk, call)), _sizes(qk, call.cos)
    prepare_qk_backward_kernel[(2 * blocks,)](*inputs, dqk, part, *sizes, call.eps, **options, **OPTIONS)
    if q_weight is None or k_weight is None:
        return [dqk]
    return [dqk, part[:, 0].sum(0).to(q_weight.dtype), part[:, 1].sum(0).to(k_weight.dtype)]


def _tables(qk: Tensor, call: Preparation) -> list[Tensor]:
    """cos, sin and weights as the kernels read them; qk stands in for absent ones, which are not read."""
    tables = call.cos, call.sin, call.q_weight, call.k_weight
    return [qk if x is None else x.float().contiguous() for x in tables]


def _blocks(qk: Tensor, options: dict[str, int | bool]) -> int:
    return -(-qk.shape[0] // options["ROWS"])


def _sizes(qk: Tensor, cos: Tensor | None) -> tuple[int, int, int, int]:
    """rows, table_rows, heads, row_stride."""
    return qk.shape[0], 1 if cos is None else cos.shape[0], qk.shape[2], qk.stride(0) // STRIDE_UNIT.value


def _aligned(qk: Tensor) -> Tensor:
    """qk itself if its heads lie side by side and its rows start on 16-byte boundaries, else a copy."""
    return aligned(qk.flatten(1)[:, None], max_row_stride=MAX_ROW_STRIDE).view(qk.shape)
