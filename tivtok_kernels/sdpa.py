"""Attention per scope on torch's own fused kernels, without a dense mask: the fallback where no kernel of ours runs.

Segments of equal lengths form one batch. Each gets a copy of the TIV keys that it sees, in front of its own keys; the
gradients of the copies are added up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tivtok_kernels.problem import NOT_INVARIANT, Call, Direction, Problem
from tivtok_kernels.ranges import RangeLayout, Segment
from tivtok_kernels.tensors import accumulation_dtype


def why_not(problem: Problem) -> str | None:
    device = problem.device.type
    if device not in ("cpu", "cuda"):
        return f"torch has no fused attention with LSE for {device} tensors"
    if problem.batch_invariant:
        return NOT_INVARIANT
    if device == "cpu":
        return None
    if problem.dtype == torch.float64:
        return "torch has no fused float64 attention for cuda tensors"
    if problem.head_dim is not None and problem.head_dim % 8:
        return (
            f"torch's fused attention for cuda tensors needs a head_dim that is a multiple of 8, got {problem.head_dim}"
        )
    if problem.deterministic:
        return "torch's fused attention backward for cuda tensors is not deterministic"
    return None


def plan_call(call: Call, direction: Direction) -> None:
    _batches(call.ranges, call.q.device)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    q = call.q
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(q.shape[:2], dtype=accumulation_dtype(q.dtype))
    for batch in _batches(call.ranges, q.device):
        k, v = _keys(call, batch)
        out[batch.q], lse[batch.q] = _attend(q[batch.q], k, v, call.scale)
    return out, lse


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    if dlse is not None:
        return [g[..., :-8].contiguous() for g in backward(*_carry_dlse(call, out, lse, dout, dlse), None)]
    q, k, v, tiv = call.q, call.k, call.v, call.tiv
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros_like(x, dtype=lse.dtype, memory_format=torch.contiguous_format) for x in (k, v))
    dk_tiv, dv_tiv = (dk, dv) if tiv is None else (torch.zeros_like(x, dtype=lse.dtype) for x in tiv)
    for batch in _batches(call.ranges, q.device):
        rows = batch.q
        grad_q, *grads = _attend_backward(dout[rows], q[rows], out[rows], lse[rows], *_keys(call, batch), call.scale)
        dq[rows] = grad_q
        for grad, into_tiv, into in zip(grads, (dk_tiv, dv_tiv), (dk, dv), strict=True):
            grad = grad.unflatten(2, (k.shape[1], -1)).sum(3, dtype=lse.dtype)  # over the query heads of a key head
            from_a, from_b = grad.split([batch.a.shape[1], batch.b.shape[1]], dim=1)
            into_tiv.index_add_(0, batch.a.flatten(), from_a.flatten(0, 1))
            into.index_add_(0, batch.b.flatten(), from_b.flatten(0, 1))
    return [x.to(q.dtype) for x in ((dq, dk, dv) if tiv is None else (dq, dk, dv, dk_tiv, dv_tiv))]


class _Batch(NamedTuple):
    """Indices of rows, one line per segment: of its queries, and of its key ranges A and B."""

    q: Tensor
    a: Tensor
    b: Tensor


@lru_cache(maxsize=256)
def _batches(layout: RangeLayout, device: torch.device) -> list[_Batch]:
    by_lengths: dict[tuple[int, int, int], list[Segment]] = {}
    for s in layout.segments:
        by_lengths.setdefault((s.q_len, s.a_len, s.b_len), []).append(s)
    with torch.inference_mode(False):  # a cached index outlives the mode it was made in
        return [
            _Batch(*(_rows([s[i] for s in segments], segments[0][i + 1]).to(device) for i in (0, 2, 4)))
            for segments in by_lengths.values()
        ]


def _rows(starts: list[int], length: int) -> Tensor:
    return torch.tensor(starts, device="cpu")[:, None] + torch.arange(length, device="cpu")


def _keys(call: Call, batch: _Batch) -> tuple[Tensor, Tensor]:
    """Keys and values of each segment, (segments, keys, H, D)."""
    group = call.q.shape[1] // call.k.shape[1]
    pairs = zip(call.tiv_or_own, (call.k, call.v), strict=True)
    k, v = (torch.cat([tiv[batch.a], own[batch.b]], dim=1) for tiv, own in pairs)
    return (k, v) if group == 1 else (k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2))


def _carry_dlse(
    call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor
) -> tuple[Call, Tensor, Tensor, Tensor]:
    """Add the gradient of the LSE to a backward that knows only the output's.

    dS = P * (dP - rowsum(dO * O) + dLSE), and O enters nowhere else: one more column in which dO is 1 and O is -dLSE
    brings it in, and zeros in q, k and v leave everything else as it was. Seven more keep rows aligned.
    """
    dout, out, q, k, v, *tiv = (F.pad(x, (0, 8)) for x in (dout, out, call.q, call.k, call.v, *(call.tiv or ())))
    dout[..., -8] = 1
    out[..., -8] = -dlse
    return call._replace(q=q, k=k, v=v, tiv=(tiv[0], tiv[1]) if tiv else None), out, lse, dout


# From here on: torch's fused kernels, tensors as (segments, rows, heads, head_dim), LSE as (segments, rows, heads).


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    else:
        out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)
        lse = lse[..., : q.shape[2]]
    return out.transpose(1, 2), lse.transpose(1, 2)


def _attend_backward(
    dout: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """The gradients of q, k and v."""
    dout, q, out, lse, k, v = (x.transpose(1, 2) for x in (dout, q, out, lse, k, v))
    if q.device.type == "cpu":
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout, q, k, v, out, lse, 0.0, False, scale=scale
        )
    else:
        lse = F.pad(lse, (0, -lse.shape[2] % 32), value=float("inf"))  # as its forward pads it
        unused = torch.empty((), dtype=torch.int64, device=q.device)  # dropout state
        grads = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            dout, q, k, v, None, out, lse, unused, unused, 0.0, [True, True, True, False], scale=scale
        )[:3]
    return tuple(grad.transpose(1, 2) for grad in grads)
