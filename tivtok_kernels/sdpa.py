"""Attention per scope on torch's own fused kernels: no dense mask, no copy of the shared TIV keys.

Segments of equal lengths at equal distances are strided views of the packed tensors and go into one call, the TIV keys
of their clip with batch stride 0. Each key range is a call of its own and the two are merged by their LSE. The backward
stays exact that way: given the merged output and LSE, every range can be differentiated alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tivtok_kernels.layout import Scope, Segment, SifLayout
from tivtok_kernels.problem import Problem
from tivtok_kernels.reference import Tiv, accumulation_dtype

# Runs with fewer (query, key) pairs than this are gathered into one call: there a call costs more than copying its
# rows (break-even measured on a 2-core CPU, 4 heads of 32).
_GATHER_BELOW = 1 << 17

# And a CPU step has about this many per thread at most: larger ones were 12 % slower, their results fall out of the
# cache before they are merged (T128 clip, 2 threads).
_PAIRS_PER_THREAD = 1 << 20


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


def forward(
    q: Tensor, k: Tensor, v: Tensor, tiv: Tiv | None, layout: SifLayout, scope: Scope, scale: float
) -> tuple[Tensor, Tensor]:
    k_tiv, v_tiv = tiv or (k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=accumulation_dtype(q.dtype), device=q.device)
    for q_g, out_g, lse_g in _per_query_group(k.shape[1], q, out, lse):
        for step in _plan(layout, scope, _largest_step(q.device)):
            query = step.q.read(q_g)
            parts = [
                _attend(query, rows.read(keys), rows.read(values), scale)
                for rows, keys, values in ((step.a, k_tiv, v_tiv), (step.b, k, v))
                if rows.length
            ]
            rows_out, rows_lse = step.q.read(out_g), step.q.read(lse_g)
            _merge(parts, rows_out, rows_lse)
            step.q.write_back(out_g, rows_out)
            step.q.write_back(lse_g, rows_lse)
    return out, lse


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
    head_dim = q.shape[-1]
    k_tiv, v_tiv = tiv or (k, v)
    if dlse is not None:
        dout, q, k, v, k_tiv, v_tiv, out = _carry_dlse(dout, dlse, q, k, v, k_tiv, v_tiv, out)
    dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    dk_tiv, dv_tiv = (dk, dv) if tiv is None else (torch.zeros_like(x) for x in (k_tiv, v_tiv))
    for dq_g, q_g, dout_g, out_g, lse_g in _per_query_group(k.shape[1], dq, q, dout, out, lse):
        for step in _plan(layout, scope, _largest_step(q.device)):
            dout_s, q_s, out_s, lse_s = (step.q.read(x) for x in (dout_g, q_g, out_g, lse_g))
            for rows, keys, values, dkeys, dvalues in ((step.a, k_tiv, v_tiv, dk_tiv, dv_tiv), (step.b, k, v, dk, dv)):
                if rows.length:
                    grads = _attend_backward(dout_s, q_s, out_s, lse_s, rows.read(keys), rows.read(values), scale)
                    for target, where, grad in zip((dq_g, dkeys, dvalues), (step.q, rows, rows), grads, strict=True):
                        where.add(target, grad)
    results = [dq, dk, dv] if tiv is None else [dq, dk, dv, dk_tiv, dv_tiv]
    return results if dlse is None else [g[..., :head_dim].contiguous() for g in results]


class Rows(NamedTuple):
    """Equally long blocks of rows of a packed tensor, a view where they lie at equal distances."""

    starts: tuple[int, ...]
    length: int

    @property
    def distance(self) -> int | None:
        """Rows from one block to the next (0: the same block for all), None if it varies."""
        distances = {b - a for a, b in zip(self.starts, self.starts[1:], strict=False)}
        return None if len(distances) > 1 else next(iter(distances), 0)

    def read(self, x: Tensor) -> Tensor:
        """(rows, ...) -> (blocks, length, ...)."""
        if self.distance is None:
            return x[self._index(x.device)]
        size, stride = (len(self.starts), self.length, *x.shape[1:]), (self.distance * x.stride(0), *x.stride())
        return x.as_strided(size, stride, x.storage_offset() + self.starts[0] * x.stride(0))

    def write_back(self, x: Tensor, blocks: Tensor) -> None:
        """Store what `read` returned and the caller has filled; a view is in its place already."""
        if self.distance is None:
            x[self._index(x.device)] = blocks

    def add(self, x: Tensor, blocks: Tensor) -> None:
        """Add to x; rows that are listed more than once receive the sum."""
        if self.distance is None:
            x.index_add_(0, self._index(x.device).flatten(), blocks.flatten(0, 1))
        elif self.distance == 0:
            x[self.starts[0] : self.starts[0] + self.length] += blocks.sum(0)
        else:
            self.read(x).add_(blocks)

    def _index(self, device: torch.device) -> Tensor:
        return torch.tensor(self.starts, device=device)[:, None] + torch.arange(self.length, device=device)


class Step(NamedTuple):
    """Segments of equal lengths that go into one call per range."""

    q: Rows
    a: Rows
    b: Rows


def _largest_step(device: torch.device) -> int | None:
    """(query, key) pairs that a step may have, None for any number."""
    return _PAIRS_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else None


@lru_cache(maxsize=256)
def _plan(layout: SifLayout, scope: Scope, largest_step: int | None) -> tuple[Step, ...]:
    by_lengths: dict[tuple[int, int, int], list[Segment]] = {}
    for s in layout.segments(scope):
        by_lengths.setdefault((s.q_len, s.a_len, s.b_len), []).append(s)
    steps = []
    for (q_len, a_len, b_len), segments in by_lengths.items():
        pairs = q_len * (a_len + b_len)
        most = len(segments) if largest_step is None else max(1, largest_step // pairs)
        gathered: list[Segment] = []
        for run in _even_runs(segments):
            if len(run) * pairs < _GATHER_BELOW:
                gathered += run
            else:
                steps += [_step(run[i : i + most]) for i in range(0, len(run), most)]
        steps += [_step(gathered[i : i + most]) for i in range(0, len(gathered), most)]
    return tuple(steps)


def _even_runs(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Split into maximal runs in which all three starts advance by constant distances."""
    run: list[Segment] = []
    for s in segments:
        if len(run) >= 2 and _distances(run[-1], s) != _distances(run[0], run[1]):
            yield run
            run = []
        run.append(s)
    yield run


def _distances(s: Segment, t: Segment) -> tuple[int, int, int]:
    return t.q_start - s.q_start, t.a_start - s.a_start, t.b_start - s.b_start


def _step(segments: list[Segment]) -> Step:
    starts = [tuple(getattr(s, name) for s in segments) for name in ("q_start", "a_start", "b_start")]
    lengths = segments[0].q_len, segments[0].a_len, segments[0].b_len
    return Step(*(Rows(*rows) for rows in zip(starts, lengths, strict=True)))


def _per_query_group(kv_heads: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Grouped-query attention as views: the j-th query head of every key/value head, for each j."""
    split = [x.unflatten(1, (kv_heads, -1)) for x in tensors]
    for j in range(split[0].shape[2]):
        yield [x[:, :, j] for x in split]


def _merge(parts: list[tuple[Tensor, Tensor]], out: Tensor, lse: Tensor) -> None:
    """Fill out and lse with the softmax over the union of disjoint key ranges, given (output, LSE) of each."""
    if len(parts) == 1:
        out.copy_(parts[0][0])
        lse.copy_(parts[0][1])
        return
    (out_a, lse_a), (out_b, lse_b) = parts
    weight = torch.sigmoid(lse_a - lse_b)[..., None]
    torch.logaddexp(lse_a, lse_b, out=lse)
    if out.dtype == weight.dtype:
        torch.lerp(out_b, out_a, weight, out=out)
    else:
        out.copy_(torch.lerp(out_b.to(weight.dtype), out_a.to(weight.dtype), weight))


def _carry_dlse(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, k_tiv: Tensor, v_tiv: Tensor, out: Tensor):
    """Add the gradient of the LSE to a backward that knows only the output's.

    dS = P * (dP - rowsum(dO * O) + dLSE), and O enters nowhere else: one more column in which dO is 1 and O is -dLSE
    brings it in, and zeros in q, k and v leave everything else as it was. Seven more keep rows aligned.
    """
    pad = (0, 8)
    dout, out = F.pad(dout, pad), F.pad(out, pad)
    dout[..., -8] = 1
    out[..., -8] = -dlse
    return dout, *(F.pad(x, pad) for x in (q, k, v, k_tiv, v_tiv)), out


# From here on: torch's fused kernels, tensors as (blocks, rows, heads, head_dim), LSE as (blocks, rows, heads).


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
    return tuple(g.transpose(1, 2) for g in grads)
