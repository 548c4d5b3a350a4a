"""Attention per scope on torch's own fused kernels: no dense mask, no copy of the shared TIV keys.

Segments of equal lengths at equal distances are strided views of the packed tensors and go into one call, the TIV keys
of their clip with batch stride 0. Each key range is a call of its own and the two are merged by their LSE. The backward
stays exact that way: given the merged output and LSE, every range can be differentiated alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tivtok_kernels.layout import Scope, Segment, SifLayout
from tivtok_kernels.problem import Call, Problem
from tivtok_kernels.reference import accumulation_dtype

# Runs with fewer (query, key) pairs than this are gathered into one call: there a call costs more than copying its
# rows (forward of 16 clips of 4 frames, 4 heads of 32, 2 threads: even at 2^13, views 1.6 times faster at 2^17).
_GATHER_BELOW = 1 << 13

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


def forward(call: Call) -> tuple[Tensor, Tensor]:
    q, k, v, scale = call.q, call.k, call.v, call.scale
    k_tiv, v_tiv = call.tiv_or_own
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=accumulation_dtype(q.dtype), device=q.device)
    plan = _plan(call.layout, call.scope, q.device, _largest_step(q.device))
    for q_g, out_g, lse_g in _per_query_group(k.shape[1], q, out, lse):
        for step in plan:
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


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    if dlse is not None:
        return [g[..., :-8].contiguous() for g in backward(*_carry_dlse(call, out, lse, dout, dlse), None)]
    q, k, v, tiv, _, _, scale = call
    k_tiv, v_tiv = call.tiv_or_own
    dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    dk_tiv, dv_tiv = (dk, dv) if tiv is None else (torch.zeros_like(x) for x in (k_tiv, v_tiv))
    plan = _plan(call.layout, call.scope, q.device, _largest_step(q.device))
    for dq_g, q_g, dout_g, out_g, lse_g in _per_query_group(k.shape[1], dq, q, dout, out, lse):
        for step in plan:
            dout_s, q_s, out_s, lse_s = (step.q.read(x) for x in (dout_g, q_g, out_g, lse_g))
            for rows, keys, values, dkeys, dvalues in ((step.a, k_tiv, v_tiv, dk_tiv, dv_tiv), (step.b, k, v, dk, dv)):
                if rows.length:
                    grads = _attend_backward(dout_s, q_s, out_s, lse_s, rows.read(keys), rows.read(values), scale)
                    for target, where, grad in zip((dq_g, dkeys, dvalues), (step.q, rows, rows), grads, strict=True):
                        where.add(target, grad)
    return [dq, dk, dv] if tiv is None else [dq, dk, dv, dk_tiv, dv_tiv]


class Rows(NamedTuple):
    """Equally long blocks of rows of a packed tensor, a view where they lie at equal distances.

    Attributes:
        first, blocks, length: first row of the first block, number of blocks, rows per block.
        distance: rows from one block to the next (0: the same block for all).
        listed: the rows (blocks, length) where distances vary, else None.
    """

    first: int
    blocks: int
    length: int
    distance: int
    listed: Tensor | None

    @classmethod
    def of(cls, starts: list[int], length: int, device: torch.device) -> Rows:
        distances = {b - a for a, b in pairwise(starts)}
        if len(distances) <= 1:
            return cls(starts[0], len(starts), length, next(iter(distances), 0), None)
        with torch.inference_mode(False):  # a cached plan outlives the mode it was made in
            listed = (torch.tensor(starts)[:, None] + torch.arange(length)).to(device)
        return cls(starts[0], len(starts), length, 0, listed)

    def read(self, x: Tensor) -> Tensor:
        """(rows, ...) -> (blocks, length, ...)."""
        if self.listed is not None:
            return x[self.listed]
        size, stride = (self.blocks, self.length, *x.shape[1:]), (self.distance * x.stride(0), *x.stride())
        return x.as_strided(size, stride, x.storage_offset() + self.first * x.stride(0))

    def write_back(self, x: Tensor, blocks: Tensor) -> None:
        """Store what `read` returned and the caller has filled; a view is in its place already."""
        if self.listed is not None:
            x[self.listed] = blocks

    def add(self, x: Tensor, blocks: Tensor) -> None:
        """Add to x; rows that are listed more than once receive the sum."""
        if self.listed is not None:
            x.index_add_(0, self.listed.flatten(), blocks.flatten(0, 1))
        elif self.distance == 0:
            x[self.first : self.first + self.length] += blocks.sum(0)
        else:
            self.read(x).add_(blocks)


class Step(NamedTuple):
    """Segments of equal lengths that go into one call per range."""

    q: Rows
    a: Rows
    b: Rows


def _largest_step(device: torch.device) -> int | None:
    """(query, key) pairs that a step may have, None for any number."""
    return _PAIRS_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else None


@lru_cache(maxsize=256)
def _plan(layout: SifLayout, scope: Scope, device: torch.device, largest_step: int | None) -> tuple[Step, ...]:
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
                steps += [_step(run[i : i + most], device) for i in range(0, len(run), most)]
        steps += [_step(gathered[i : i + most], device) for i in range(0, len(gathered), most)]
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


def _step(segments: list[Segment], device: torch.device) -> Step:
    q, a, b = ([getattr(s, name) for s in segments] for name in ("q_start", "a_start", "b_start"))
    one = segments[0]
    return Step(Rows.of(q, one.q_len, device), Rows.of(a, one.a_len, device), Rows.of(b, one.b_len, device))


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
