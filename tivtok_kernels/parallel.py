"""Clips whose frames are spread over processes: frame rows stay where they are, TIV rows meet once.

Every process holds all TIV rows and some of the frames. A frame row sees the TIV rows and its own frame, both of which
are at hand. A TIV row sees all frames: each process attends to its own, and the results are merged by their LSE,

    L = log sum_r exp(l_r),    o = sum_r exp(l_r - L) o_r,

which moves M H (D + 1) numbers a clip of M TIV rows, however long it is.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from tivtok_kernels import ops
from tivtok_kernels.layout import SifLayout
from tivtok_kernels.ranges import Range, RangeLayout

Group = dist.ProcessGroup | DeviceMesh

_MOST_MET = 256
# The TIV tokens that the processes of a group have found to be the same. Nothing here keeps a group alive: threads of
# one that outlives `destroy_process_group` can abort the interpreter as it ends.
_MET: WeakKeyDictionary[dist.ProcessGroup, set[tuple[int, ...]]] = WeakKeyDictionary()


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: SifLayout, options: ops.Options, group: Group
) -> tuple[Tensor, Tensor]:
    """Packed q (N, H, D), k and v (N, Hk, D) of this process's frames -> out (N, H, D) and LSE (N, H) of its rows.

    Args:
        layout: the same clips on every process, each with the frames that are here (maybe none).
        options: as in `ops.attend`, with scope "clip".

    Raises:
        ValueError: ``group`` is a mesh of several dimensions, or the processes have other clips, all of them new.
        NotImplementedError: in a graph that torch.compile traces, which ends there.
    """
    if torch.compiler.is_compiling():
        raise NotImplementedError("group: processes cannot exchange anything in a compiled graph (fullgraph=True)")
    processes = _process_group(group)
    _check_clips(layout.num_tiv, processes)
    rows = _rows(layout, dist.get_rank(processes) == 0, q.device)
    ranges = options._replace(scope="ranges")
    if rows.asking is None:
        out, lse = ops.attend((q, k, v, None, None), rows.ranges, ranges)
    else:
        asked, asked_lse = ops.attend((q[rows.asking], k, v, None, None), rows.ranges, ranges)
        out = q.new_zeros(q.shape).index_copy(0, rows.asking, asked)
        lse = asked_lse.new_full(q.shape[:-1], -torch.inf).index_copy(0, rows.asking, asked_lse)
    merged, merged_lse = _Merge.apply(out[rows.tiv], lse[rows.tiv], processes)
    return out.index_copy(0, rows.tiv, merged), lse.index_copy(0, rows.tiv, merged_lse)


class _Rows(NamedTuple):
    """What a process's queries see of its keys.

    Attributes:
        ranges: of the queries that see any.
        asking: their rows, None for all.
        tiv: the TIV rows.
    """

    ranges: RangeLayout
    asking: Tensor | None
    tiv: Tensor


@lru_cache(maxsize=256)
def _rows(layout: SifLayout, is_first: bool, device: torch.device) -> _Rows:
    """The first process lets TIV rows see the TIV rows, too; with the others they see frames alone."""
    runs: list[tuple[int, Range, Range]] = []
    asking: list[int] = []
    tiv: list[int] = []
    row = 0
    for num_tiv, frames in zip(layout.num_tiv, layout.frame_tokens, strict=True):
        first, end = row + num_tiv, row + num_tiv + sum(frames)
        tiv += range(row, first)
        if end > first:
            runs.append((num_tiv, (first, end), (end, end)))
            asking += range(row, end)
        for start, stop in pairwise(accumulate(frames, initial=first)):
            runs.append((stop - start, (row, first), (start, stop)))
        row = end
    tiv_rows = torch.tensor(tiv, dtype=torch.int64, device=device)
    if is_first:
        return _Rows(layout.ranges("clip"), None, tiv_rows)
    some = torch.tensor(asking, dtype=torch.int64, device=device) if len(asking) < layout.total_tokens else None
    return _Rows(RangeLayout.from_runs(runs, layout.total_tokens), some, tiv_rows)


class _Merge(torch.autograd.Function):
    """Partial results (M, H, D) and LSE (M, H) of each process -> those of all, the same on every process.

    A gradient that arrives is one process's share; the total is their sum, and so it is for the gradients returned.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, lse: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        every = [torch.empty_like(lse) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, lse.contiguous(), group=group)
        total = torch.stack(every).logsumexp(0)
        weight = (lse - total).exp()
        merged = out.to(lse.dtype) * weight[..., None]
        dist.all_reduce(merged, group=group)
        ctx.save_for_backward(out, weight, merged)
        ctx.group = ref(group)
        return merged.to(out.dtype), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor, Tensor, None]:
        out, weight, merged = ctx.saved_tensors
        group = ctx.group()
        if group is None:
            raise RuntimeError("the group of processes has ended between a call's forward and its backward")
        gradients = torch.cat([dout.to(dlse.dtype), dlse[..., None]], dim=-1)
        dist.all_reduce(gradients, group=group)
        dout, dlse = gradients[..., :-1], gradients[..., -1]
        slope = (dout * (out.to(dlse.dtype) - merged)).sum(-1) + dlse
        return (weight[..., None] * dout).to(out.dtype), weight * slope, None


def _process_group(group: Group) -> dist.ProcessGroup:
    return group.get_group() if isinstance(group, DeviceMesh) else group


def _check_clips(num_tiv: tuple[int, ...], group: dist.ProcessGroup) -> None:
    """Compare ``num_tiv`` with that of the other processes, in one exchange, unless they have met it lately.

    Raises:
        ValueError: it is not the same on all processes.
    """
    met = _MET.setdefault(group, set())
    if num_tiv in met:
        return
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, num_tiv, group=group)
    for rank, other in enumerate(every):
        if other != every[0]:
            raise ValueError(
                f"layout must have the same TIV tokens on every process, but it has {list(every[0])} on process 0 "
                f"and {list(other)} on process {rank} of the group"
            )
    if len(met) == _MOST_MET:  # the same moment on every process, as all calls of a group are
        met.clear()
    met.add(num_tiv)
