"""The oracle: attention under the dense visibility mask, written to be read.

Rows with equal rows of the mask see the same keys, so each such group attends, unmasked, to its keys alone: NaN and
infinity never reach a row that does not see them. All of it is plain differentiable torch, forwards and to any order.

Precision: float64 inputs give the truth that every backend is measured against; others are computed in float32, and
every result is rounded once. Memory grows with the square of the packed length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tivtok_kernels.problem import NOT_INVARIANT, Call, Direction, Problem
from tivtok_kernels.tensors import accumulation_dtype, is_autocast_on


def why_not(problem: Problem) -> str | None:
    """Runs wherever torch runs."""
    return NOT_INVARIANT if problem.batch_invariant else None


def plan_call(call: Call, direction: Direction) -> None:
    """Makes its dense mask anew for every call."""


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention under a dense mask, differentiable by autograd.

    Args:
        q: (N, H, D). k, v: (M, Hk, D), H a multiple of Hk. visible: bool (N, M), at least one True per row.

    Returns:
        out (N, H, D) in the dtype of q, and the natural-log LSE (N, H) in float32 (float64 for float64 inputs).
    """
    dtype, group = q.dtype, q.shape[1] // k.shape[1]
    q, k, v = (x.to(accumulation_dtype(dtype)) for x in (q, k, v))
    order, outs, lses = [], [], []
    with _no_autocast(q):
        for rows, keys in row_groups(visible):
            weights, lse = _softmax(q[rows], _per_query_head(k[keys], group), scale)
            outs.append(torch.einsum("hnm,mhd->nhd", weights, _per_query_head(v[keys], group)))
            lses.append(lse.T)
            order.append(rows)
    place = torch.cat(order).argsort()
    return torch.cat(outs)[place].to(dtype), torch.cat(lses)[place]


def forward(call: Call) -> tuple[Tensor, Tensor]:
    keys, values = _join(call)
    out, lse = masked_attention(call.q, keys, values, call.ranges.visibility(call.q.device), call.scale)
    return out.contiguous(), lse.contiguous()


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    """The softmax gradient written out: dS = P * (dP - rowsum(dO * O) + dLSE)."""
    dtype = call.q.dtype
    q, k, v, out, dout = (x.to(lse.dtype) for x in (call.q, *_join(call), out, dout))
    group = q.shape[1] // k.shape[1]
    delta = (dout * out).sum(-1)
    if dlse is not None:
        delta = delta - dlse
    order, dqs, dk, dv = [], [], torch.zeros_like(k), torch.zeros_like(v)
    with _no_autocast(q):
        for rows, keys in row_groups(call.ranges.visibility(q.device)):
            k_seen, v_seen = (_per_query_head(x[keys], group) for x in (k, v))
            weights, _ = _softmax(q[rows], k_seen, call.scale)
            dweights = torch.einsum("nhd,mhd->hnm", dout[rows], v_seen)
            dscores = weights * (dweights - delta[rows].T[..., None]) * call.scale
            order.append(rows)
            dqs.append(torch.einsum("hnm,mhd->nhd", dscores, k_seen))
            dk_seen, dv_seen = (torch.einsum("hnm,nhd->mhd", x, y[rows]) for x, y in ((dscores, q), (weights, dout)))
            dk = dk.index_add(0, keys, dk_seen.unflatten(1, (-1, group)).sum(2))
            dv = dv.index_add(0, keys, dv_seen.unflatten(1, (-1, group)).sum(2))
    dq = torch.cat(dqs)[torch.cat(order).argsort()]
    if call.tiv is None:
        return [x.to(dtype) for x in (dq, dk, dv)]
    tiv_rows = call.tiv[0].shape[0]
    own_and_tiv = (dk[tiv_rows:], dv[tiv_rows:], dk[:tiv_rows], dv[:tiv_rows])
    return [dq.to(dtype), *(x.to(dtype, copy=True) for x in own_and_tiv)]  # copies: no shared storage


def row_groups(visible: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The indices of rows that see the same keys, and of those keys."""
    if len(visible) == 0:
        return
    masks, group = visible.unique(dim=0, return_inverse=True)
    for i, mask in enumerate(masks):
        yield (group == i).nonzero().squeeze(1), mask.nonzero().squeeze(1)


def _no_autocast(q: Tensor) -> AbstractContextManager[object]:
    """Products in the dtype of their operands: under torch.autocast they would be rounded to 16 bits."""
    device = q.device.type
    return torch.autocast(device, enabled=False) if is_autocast_on(device) else nullcontext()


def _softmax(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention weights (H, rows, keys) and LSE (H, rows)."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) * scale
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse[..., None]), lse


def _per_query_head(x: Tensor, group: int) -> Tensor:
    return x.repeat_interleave(group, dim=1)


def _join(call: Call) -> tuple[Tensor, Tensor]:
    """One key and one value tensor, TIV rows first where they come in tensors of their own."""
    if call.tiv is None:
        return call.k, call.v
    k_tiv, v_tiv = call.tiv
    return torch.cat([k_tiv, call.k]), torch.cat([v_tiv, call.v])
