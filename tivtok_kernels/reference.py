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

from tivtok_kernels.problem import Call, Problem


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


def forward(call: Call) -> tuple[Tensor, Tensor]:
    keys, values = _join(call)
    out, lse = masked_attention(call.q, keys, values, call.layout.visibility(call.scope, call.q.device), call.scale)
    return out.contiguous(), lse.contiguous()


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    """The softmax gradient written out: dS = P * (dP - rowsum(dO * O) + dLSE)."""
    q, scale = call.q, call.scale
    keys, values = _join(call)
    group = q.shape[1] // keys.shape[1]
    weights, _ = _softmax(q, keys, call.layout.visibility(call.scope, q.device), scale)

    dweights = torch.einsum("nhd,mhd->hnm", dout, values.repeat_interleave(group, dim=1)).to(weights.dtype)
    delta = (dout.to(weights.dtype) * out.to(weights.dtype)).sum(-1)
    if dlse is not None:
        delta = delta - dlse
    dscores = (weights * (dweights - delta.T[..., None]) * scale).to(q.dtype)

    dq = torch.einsum("hnm,mhd->nhd", dscores, keys.repeat_interleave(group, dim=1))
    dk = torch.einsum("hnm,nhd->mhd", dscores, q).unflatten(1, (-1, group)).sum(2)
    dv = torch.einsum("hnm,nhd->mhd", weights.to(q.dtype), dout).unflatten(1, (-1, group)).sum(2)
    if call.tiv is None:
        return [dq.contiguous(), dk.contiguous(), dv.contiguous()]
    rows = call.tiv[0].shape[0]
    return [dq.contiguous(), *(g.clone() for g in (dk[rows:], dv[rows:], dk[:rows], dv[:rows]))]  # no shared storage


def _join(call: Call) -> tuple[Tensor, Tensor]:
    """One key and one value tensor, TIV rows first where they come in tensors of their own."""
    if call.tiv is None:
        return call.k, call.v
    k_tiv, v_tiv = call.tiv
    return torch.cat([k_tiv, call.k]), torch.cat([v_tiv, call.v])
