"""Attention per scope on torch's own fused kernels, without a dense mask: the fallback where no kernel of ours runs.

Segments of equal lengths at equal distances are strided views of the packed tensors and go into one call. The TIV keys
of their clip are such a view too, with stride 0, and each key range is a call of its own: the two are merged by their
LSE. The backward is exact: given the merged output and LSE, every range can be differentiated alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tivtok_kernels.problem import Call, Problem
from tivtok_kernels.ranges import RangeLayout, Segment
from tivtok_kernels.tensors import accumulation_dtype


def why_not(problem: Problem) -> str | None:
    device = problem.device.type
    if device not in ("cpu", "cuda"):
        return f"torch has no fused attention with LSE for {device} tensors"
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


def forward(call: Call) -> tuple[Tensor, Tensor]:
    q, k, v, scale = call.q, call.k, call.v, call.scale
    k_tiv, v_tiv = call.tiv_or_own
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=accumulation_dtype(q.dtype), device=q.device)
    for q_g, out_g, lse_g in _per_query_group(k.shape[1], q, out, lse):
        for run in _runs(call.ranges):
            query = run.q.view(q_g)
            parts = [_attend(query, run.a.view(k_tiv), run.a.view(v_tiv), scale)] if run.a.length else []
            parts += [_attend(query, run.b.view(k), run.b.view(v), scale)] if run.b.length else []
            rows_out, rows_lse = parts[0] if len(parts) == 1 else _merge(parts[0], parts[1])
            run.q.view(out_g).copy_(rows_out)
            run.q.view(lse_g).copy_(rows_lse)
    return out, lse


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    if dlse is not None:
        return [g[..., :-8].contiguous() for g in backward(*_carry_dlse(call, out, lse, dout, dlse), None)]
    q, k, v, tiv, _, _, scale = call
    k_tiv, v_tiv = call.tiv_or_own
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dk_tiv, dv_tiv = (dk, dv) if tiv is None else (torch.zeros_like(x) for x in (k_tiv, v_tiv))
    for dq_g, *rows in _per_query_group(k.shape[1], dq, q, dout, out, lse):
        for run in _runs(call.ranges):
            q_r, dout_r, out_r, lse_r = (run.q.view(x) for x in rows)
            for keys, *tensors in ((run.a, k_tiv, v_tiv, dk_tiv, dv_tiv), (run.b, k, v, dk, dv)):
                if keys.length == 0:
                    continue
                k_r, v_r = (keys.view(x) for x in tensors[:2])
                grad = _attend_backward(dout_r, q_r, out_r, lse_r, k_r, v_r, scale)
                run.q.add(dq_g, grad.dq)
                keys.add(tensors[2], grad.dk)
                keys.add(tensors[3], grad.dv)
    return [dq, dk, dv] if tiv is None else [dq, dk, dv, dk_tiv, dv_tiv]


class Rows(NamedTuple):
    """``num_blocks`` blocks of ``length`` rows of a packed tensor, ``distance`` rows apart (0: one block for all)."""

    first: int
    length: int
    num_blocks: int
    distance: int

    def view(self, x: Tensor) -> Tensor:
        """(rows, ...) -> (num_blocks, length, ...)."""
        size, stride = (self.num_blocks, self.length, *x.shape[1:]), (self.distance * x.stride(0), *x.stride())
        return x.as_strided(size, stride, x.storage_offset() + self.first * x.stride(0))

    def add(self, x: Tensor, blocks: Tensor) -> None:
        """Add (num_blocks, length, ...); rows that several blocks share receive the sum."""
        if self.distance == 0:
            self._replace(num_blocks=1).view(x).add_(blocks.sum(0, keepdim=True))
        elif self.distance >= self.length:
            self.view(x).add_(blocks)
        else:
            for i, block in enumerate(blocks):
                x.narrow(0, self.first + i * self.distance, self.length).add_(block)


class Run(NamedTuple):
    """Segments of equal lengths at equal distances: their rows, and their ranges A and B."""

    q: Rows
    a: Rows
    b: Rows


@lru_cache(maxsize=256)
def _runs(layout: RangeLayout) -> tuple[Run, ...]:
    by_lengths: dict[tuple[int, int, int], list[Segment]] = {}
    for s in layout.segments:
        by_lengths.setdefault((s.q_len, s.a_len, s.b_len), []).append(s)
    return tuple(_run(stretch) for segments in by_lengths.values() for stretch in _even(segments))


def _even(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Split into maximal stretches in which all three starts advance by constant distances, none of them negative."""
    stretch: list[Segment] = []
    for s in segments:
        uneven = len(stretch) >= 2 and _distances(stretch[-1], s) != _distances(stretch[0], stretch[1])
        if uneven or (stretch and min(_distances(stretch[-1], s)) < 0):
            yield stretch
            stretch = []
        stretch.append(s)
    yield stretch


def _run(segments: list[Segment]) -> Run:
    s, count = segments[0], len(segments)
    q, a, b = _distances(s, segments[1]) if count > 1 else (0, 0, 0)
    return Run(
        Rows(s.q_start, s.q_len, count, q), Rows(s.a_start, s.a_len, count, a), Rows(s.b_start, s.b_len, count, b)
    )


def _distances(s: Segment, t: Segment) -> tuple[int, int, int]:
    return t.q_start - s.q_start, t.a_start - s.a_start, t.b_start - s.b_start


def _per_query_group(kv_heads: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Grouped-query attention as views: the j-th query head of every key/value head, for each j."""
    split = [x.unflatten(1, (kv_heads, -1)) for x in tensors]
    for j in range(split[0].shape[2]):
        yield [x[:, :, j] for x in split]


def _merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Softmax over the union of two disjoint key ranges, given (output, LSE) of each."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    weight = torch.sigmoid(lse_a - lse_b)[..., None]
    out = torch.lerp(out_b.to(weight.dtype), out_a.to(weight.dtype), weight)
    return out, torch.logaddexp(lse_a, lse_b)


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


# From here on: torch's fused kernels, tensors as (blocks, rows, heads, head_dim), LSE as (blocks, rows, heads).


class Gradients(NamedTuple):
    dq: Tensor
    dk: Tensor
    dv: Tensor


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
) -> Gradients:
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
    return Gradients(*(grad.transpose(1, 2) for grad in grads))
