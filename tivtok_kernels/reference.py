"""The oracle: attention with the dense visibility mask, written to be read.

Precision: matrix products run in the dtype of the inputs, the softmax in at least float32. With float64 inputs this
is the truth every backend is measured against; with low-precision inputs it is the "eager PyTorch in the same dtype"
whose error sets the budget (docs/numerics.md). Memory grows with the square of the packed length.

The mask is dense, so one NaN or Inf in ``v`` reaches every row of its head (0 * NaN); the other backends confine it to
the rows that see it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Problem

Tiv = tuple[Tensor, Tensor]


def why_not(problem: Problem) -> str | None:
    """Runs wherever torch runs."""
    return None


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention under a dense mask, differentiable by autograd.

    Args:
        q: (N, H, D). k, v: (M, Hk, D), H a multiple of Hk. visible: bool (N, M), at least one True per row.

    Returns:
        out (N, H, D) in the dtype of q, and the natural-log LSE (N, H) in float32 (float64 for float64 inputs).
    """
    weights, lse = _softmax(q, k, visible, scale)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return torch.einsum("hnm,mhd->nhd", weights.to(v.dtype), v), lse.T


def _softmax(q: Tensor, k: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention weights (H, N, M) and LSE (H, N), both in the accumulation dtype."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("nhd,mhd->hnm", q, k).to(accumulation_dtype(q.dtype)) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse[..., None]), lse


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of LSE and softmax: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    q: Tensor, k: Tensor, v: Tensor, tiv: Tiv | None, layout: SifLayout, scope: Scope, scale: float
) -> tuple[Tensor, Tensor]:
    keys, values = _join(k, v, tiv)
    out, lse = masked_attention(q, keys, values, layout.visibility(scope, q.device), scale)
    return out.contiguous(), lse.contiguous()


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiv: Tiv | None,
    out: Tensor,
    lse: Tensor,
    layout: SifLayout,
    scope: Scope,
    scale: float,
) -> list[Tensor]:
    """The softmax gradient written out: dS = P * (dP - rowsum(dO * O) + dLSE)."""
    keys, values = _join(k, v, tiv)
    group = q.shape[1] // k.shape[1]
    weights, _ = _softmax(q, keys, layout.visibility(scope, q.device), scale)

    dweights = torch.einsum("nhd,mhd->hnm", dout, values.repeat_interleave(group, dim=1)).to(weights.dtype)
    delta = (dout.to(weights.dtype) * out.to(weights.dtype)).sum(-1)
    if dlse is not None:
        delta = delta - dlse
    dscores = (weights * (dweights - delta.T[..., None]) * scale).to(q.dtype)

    dq = torch.einsum("hnm,mhd->nhd", dscores, keys.repeat_interleave(group, dim=1))
    dk = torch.einsum("hnm,nhd->mhd", dscores, q).unflatten(1, (-1, group)).sum(2)
    dv = torch.einsum("hnm,nhd->mhd", weights.to(q.dtype), dout).unflatten(1, (-1, group)).sum(2)
    if tiv is None:
        return [dq.contiguous(), dk.contiguous(), dv.contiguous()]
    rows = tiv[0].shape[0]
    return [dq.contiguous(), *(g.clone() for g in (dk[rows:], dv[rows:], dk[:rows], dv[:rows]))]  # no shared storage


def _join(k: Tensor, v: Tensor, tiv: Tiv | None) -> Tiv:
    """One key and one value tensor, TIV rows first where they come in tensors of their own."""
    return (k, v) if tiv is None else (torch.cat([tiv[0], k]), torch.cat([tiv[1], v]))
