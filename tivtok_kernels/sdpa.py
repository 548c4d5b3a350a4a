"""Attention per scope on torch's own fused kernels, without a dense mask.

Segments of equal lengths at equal distances are strided views of the packed tensors and go into one call. The TIV keys
of their clip are such a view too, with stride 0, and each key range is a call of its own: the two are merged by their
LSE. On a CPU, where a second call and a merge can cost more than copying keys, both ranges of a step are copied into
one block instead; steps are small, so copies are too. The backward is exact either way: given the merged output and
LSE, every range can be differentiated alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tivtok_kernels.layout import Scope, Segment, SifLayout
from tivtok_kernels.problem import Call, Problem
from tivtok_kernels.reference import accumulation_dtype

# Segments with fewer (query, key) pairs than this are gathered into one call: there a call costs more than copying its
# rows (forward of 16 clips of 4 frames, 4 heads of 32, 2 threads: even at 2^13, views 1.6 times faster at 2^17).
_GATHER_BELOW = 1 << 13

# On a CPU, segments with at most this many TIV keys per query have their two key ranges copied into one block: 64
# clips of 4 frames of 64 tokens and 16 TIV tokens are 1.5 times faster for it; with 8 TIV keys per query some sizes are
# slower. Never in "broadcast", which promises not to copy TIV keys.
_JOIN_UP_TO = 4

# (query, key) pairs per thread that a CPU step has at most, unless it is one segment: the results of larger ones fall
# out of the cache before they are merged, and copied keys before they are read.
_PAIRS_PER_THREAD = 1 << 20
_JOINED_PAIRS_PER_THREAD = 1 << 17


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
    plan = _plan(call.layout, call.scope, q.device, torch.get_num_threads())
    for q_g, out_g, lse_g in _per_query_group(k.shape[1], q, out, lse):
        for step in plan:
            query = step.q.read(q_g)
            ranges = zip(step.read_ranges(k_tiv, k), step.read_ranges(v_tiv, v), strict=True)
            parts = [_attend(query, keys, values, scale) for keys, values in ranges]
            rows_out, rows_lse = parts[0]
            if len(parts) == 2:
                rows_out, rows_lse = _merge(parts[0], parts[1], out=step.q.read(out_g), lse=step.q.read(lse_g))
            step.q.write(out_g, rows_out)
            step.q.write(lse_g, rows_lse)
    return out, lse


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    if dlse is not None:
        return [g[..., :-8].contiguous() for g in backward(*_carry_dlse(call, out, lse, dout, dlse), None)]
    q, k, v, tiv, _, _, scale = call
    k_tiv, v_tiv = call.tiv_or_own
    dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    dk_tiv, dv_tiv = (dk, dv) if tiv is None else (torch.zeros_like(x) for x in (k_tiv, v_tiv))
    plan = _plan(call.layout, call.scope, q.device, torch.get_num_threads())
    for dq_g, q_g, dout_g, out_g, lse_g in _per_query_group(k.shape[1], dq, q, dout, out, lse):
        for step in plan:
            dout_s, q_s, out_s, lse_s = (step.q.read(x) for x in (dout_g, q_g, out_g, lse_g))
            ranges = zip(step.read_ranges(k_tiv, k), step.read_ranges(v_tiv, v), strict=True)
            grads = [_attend_backward(dout_s, q_s, out_s, lse_s, keys, values, scale) for keys, values in ranges]
            for grad in grads:
                step.q.add(dq_g, grad.dq)
            step.add_to_ranges(dk_tiv, dk, [grad.dk for grad in grads])
            step.add_to_ranges(dv_tiv, dv, [grad.dv for grad in grads])
    return [dq, dk, dv] if tiv is None else [dq, dk, dv, dk_tiv, dv_tiv]


class Rows(NamedTuple):
    """Equally long blocks of rows of a packed tensor: a grid with equal distances, which is a view, or a list.

    Attributes:
        first, length: first row of the first block, rows per block.
        counts: blocks along the one or two dimensions of the grid.
        distances: rows from one block to the next along each (0: the same block for all).
        listed: the rows (blocks, length) where distances vary, else None.
    """

    first: int
    length: int
    counts: tuple[int, ...]
    distances: tuple[int, ...]
    listed: Tensor | None

    @classmethod
    def of(cls, starts: list[list[int]], length: int, device: torch.device) -> Rows:
        """Blocks that start at these rows, outer by inner."""
        with torch.inference_mode(False):  # a cached plan outlives the mode it was made in
            grid = torch.tensor(starts)
            grid = grid[0] if len(grid) == 1 else grid
            distances = [grid.diff(dim=dim).unique().tolist() for dim in range(grid.ndim)]
            if all(len(different) <= 1 for different in distances):
                return cls(starts[0][0], length, tuple(grid.shape), tuple(sum(d) for d in distances), None)
            listed = (grid.view(-1, 1) + torch.arange(length)).to(device)
        return cls(starts[0][0], length, (len(listed),), (0,), listed)

    def grid(self, x: Tensor) -> Tensor:
        """(rows, ...) -> (*counts, length, ...), a view unless the rows are listed."""
        if self.listed is not None:
            return x[self.listed]
        size = (*self.counts, self.length, *x.shape[1:])
        stride = (*(distance * x.stride(0) for distance in self.distances), *x.stride())
        return x.as_strided(size, stride, x.storage_offset() + self.first * x.stride(0))

    def read(self, x: Tensor) -> Tensor:
        """(rows, ...) -> (blocks, length, ...), a view if the grid has one dimension."""
        return self.flat(self.grid(x))

    def flat(self, grid: Tensor) -> Tensor:
        """(*counts, ...) -> (blocks, ...)."""
        return grid if len(self.counts) == 1 else grid.flatten(0, 1)

    def unflat(self, blocks: Tensor) -> Tensor:
        """(blocks, ...) -> (*counts, ...)."""
        return blocks if len(self.counts) == 1 else blocks.unflatten(0, self.counts)

    def write(self, x: Tensor, blocks: Tensor) -> None:
        """Store (blocks, length, ...) in rows of their own; what is a view that `read` gave is in its place already."""
        if self.listed is not None:
            x[self.listed] = blocks
        else:
            self.grid(x).copy_(self.unflat(blocks))

    def add(self, x: Tensor, blocks: Tensor) -> None:
        """Add (blocks, length, ...); rows that are there more than once receive the sum."""
        if self.listed is not None:
            x.index_add_(0, self.listed.flatten(), blocks.flatten(0, 1))
            return
        repeated = [dim for dim, distance in enumerate(self.distances) if distance == 0 and self.counts[dim] > 1]
        counts = tuple(1 if dim in repeated else count for dim, count in enumerate(self.counts))
        grid = self.unflat(blocks)
        target = self._replace(counts=counts).grid(x)
        target += grid.sum(repeated, keepdim=True) if repeated else grid


class Step(NamedTuple):
    """Segments of equal lengths that go into one call per range, or one for both if these are joined."""

    q: Rows
    a: Rows
    b: Rows
    joined: bool

    def read_ranges(self, tiv: Tensor, own: Tensor) -> list[Tensor]:
        """The rows of the ranges that are not empty: A of the TIV keys (or values), B of the own ones."""
        ranges = [(rows, x) for rows, x in ((self.a, tiv), (self.b, own)) if rows.length]
        if self.joined:
            return [self.a.flat(torch.cat([rows.grid(x) for rows, x in ranges], dim=-3))]
        return [rows.read(x) for rows, x in ranges]

    def add_to_ranges(self, tiv: Tensor, own: Tensor, ranges: list[Tensor]) -> None:
        """Add to the rows that `read_ranges` reads."""
        targets = [(rows, x) for rows, x in ((self.a, tiv), (self.b, own)) if rows.length]
        parts = ranges[0].split([self.a.length, self.b.length], dim=1) if self.joined else ranges
        for (rows, x), part in zip(targets, parts, strict=True):
            rows.add(x, part)


Grid = list[list[Segment]]
T = TypeVar("T")


@lru_cache(maxsize=256)
def _plan(layout: SifLayout, scope: Scope, device: torch.device, threads: int) -> tuple[Step, ...]:
    by_lengths: dict[tuple[int, int, int], list[Segment]] = {}
    for s in layout.segments(scope):
        by_lengths.setdefault((s.q_len, s.a_len, s.b_len), []).append(s)
    cpu = device.type == "cpu"
    steps = []
    for (q_len, a_len, b_len), segments in by_lengths.items():
        joined = cpu and scope != "broadcast" and 0 < a_len <= _JOIN_UP_TO * q_len and b_len > 0
        pairs = q_len * (a_len + b_len)
        largest = threads * (_JOINED_PAIRS_PER_THREAD if joined else _PAIRS_PER_THREAD)
        most = max(1, largest // pairs) if cpu else len(segments)
        gathered: list[Segment] = []
        for grid in _even_grids(segments, two_levels=joined):
            if len(grid) * len(grid[0]) * pairs < _GATHER_BELOW:
                gathered += chain.from_iterable(grid)
            else:
                steps += [_step(part, joined, device) for part in _parts(grid, most)]
        if gathered:
            steps += [_step(part, joined, device) for part in _parts([gathered], most)]
    return tuple(steps)


def _even_grids(segments: list[Segment], two_levels: bool) -> Iterator[Grid]:
    """Split into runs in which all three starts advance by constant distances, and these likewise into grids.

    With one level every grid is one run. Attention wants one level: it copies the rows of a grid of several runs.
    """
    runs = [list(chain.from_iterable(items)) for items in _even([[s] for s in segments])]
    if not two_levels:
        yield from ([run] for run in runs)
        return
    alike: dict[tuple[int, tuple[int, ...]], Grid] = {}
    for run in runs:
        alike.setdefault((len(run), _distances(run[0], run[-1])), []).append(run)
    for grid in alike.values():
        yield from _even(grid)


def _even(runs: Grid) -> Iterator[Grid]:
    """Split into maximal stretches in which the first segments' starts advance by constant distances."""
    stretch: Grid = []
    for run in runs:
        if len(stretch) >= 2 and _distances(stretch[-1][0], run[0]) != _distances(stretch[0][0], stretch[1][0]):
            yield stretch
            stretch = []
        stretch.append(run)
    yield stretch


def _distances(s: Segment, t: Segment) -> tuple[int, ...]:
    return t.q_start - s.q_start, t.a_start - s.a_start, t.b_start - s.b_start


def _parts(grid: Grid, most: int) -> Iterator[Grid]:
    """Grids of at most this many segments, about equally large: of whole runs if they are short enough."""
    runs = most // len(grid[0])
    if runs:
        yield from _chunks(grid, runs)
    else:
        yield from ([part] for run in grid for part in _chunks(run, most))


def _chunks(items: list[T], most: int) -> Iterator[list[T]]:
    count = -(-len(items) // most)
    size = -(-len(items) // count)
    return (items[i : i + size] for i in range(0, len(items), size))


def _step(grid: Grid, joined: bool, device: torch.device) -> Step:
    q, a, b = ([[getattr(s, start) for s in run] for run in grid] for start in ("q_start", "a_start", "b_start"))
    one = grid[0][0]
    return Step(Rows.of(q, one.q_len, device), Rows.of(a, one.a_len, device), Rows.of(b, one.b_len, device), joined)


def _per_query_group(kv_heads: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Grouped-query attention as views: the j-th query head of every key/value head, for each j."""
    split = [x.unflatten(1, (kv_heads, -1)) for x in tensors]
    for j in range(split[0].shape[2]):
        yield [x[:, :, j] for x in split]


def _merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Fill out and lse with the softmax over the union of two disjoint key ranges, given (output, LSE) of each."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    weight = torch.sigmoid(lse_a - lse_b)[..., None]
    torch.logaddexp(lse_a, lse_b, out=lse)
    if out.dtype == weight.dtype:
        torch.lerp(out_b, out_a, weight, out=out)
    else:
        out.copy_(torch.lerp(out_b.to(weight.dtype), out_a.to(weight.dtype), weight))
    return out, lse


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
