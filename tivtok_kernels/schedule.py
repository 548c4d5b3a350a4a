"""Work lists: which block of rows goes over which ranges, in which order, cut into how many pieces.

Shared by the backends that launch one program per (tile, head). A tile is up to ``block`` rows of one run (see
`RangeLayout`), so no tile mixes rows with different ranges. It walks range A and B in steps of ``step`` rows:
full steps first, then what is left of both, joined end to end. Any piece of ``n`` rows of [A | B] therefore takes
``ceil(n / step)`` steps, wherever it was cut.

Tiles are listed longest first. A tile longer than its share of the machine (all steps of all heads / workers) is cut
into pieces of almost equal length; they write partial results, which a merge adds up in the order of the list. So can
be the last tiles, where a round of their own would leave most of the machine idle. What else is in the batch therefore
decides how sums are grouped, unless cuts are asked for that depend on a tile's own length alone.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.ranges import RangeLayout

T = TypeVar("T")

# Plans that CUDA graphs were captured with.
_captured: dict[int, object] = {}

# Tiles of fewer steps stay whole: the pieces would cost more to merge than they save in waiting.
MIN_STEPS_TO_SPLIT = 8

# Steps of a piece, at most, where a tile's own length alone may say how it is cut.
INVARIANT_STEPS = 16

# When the tiles of a last round are cut: of so many rounds it would be a small share, and into how many pieces at most.
MANY_ROUNDS, MOST_PIECES = 6, 6

# What that is weighed by, in steps (docs/kernels/latency.md): the start and end of an item, a launch that merges, and
# writing and reading a partial result, spread over all workers. The end must come so much earlier.
ITEM_COST, MERGE_COST, PART_COST = 0.6, 2.0, 0.03
WORTH_IT = 0.97


class WorkList(NamedTuple):
    """Attributes:

    tiles: int32 (tiles, 8): row, row end, A, A end, B, B end, slot of its partial result or -1, in_tiv (0 or 1).
    merges: int32 (merges, 8): row, row end, first slot, slots, in_tiv, 0, 0, 0.
    num_slots: partial results per head.
    streams: that the allocator knows to read the lists, see `hold`.
    """

    tiles: Tensor
    merges: Tensor
    num_tiles: int
    num_merges: int
    num_slots: int
    streams: set[int]

    @property
    def memory(self) -> Tensor:
        return self.tiles


class Held(Protocol):
    """Lists on a device: a tensor in whose memory they lie, and the streams that the allocator knows to read it."""

    @property
    def memory(self) -> Tensor: ...

    @property
    def streams(self) -> set[int]: ...


@lru_cache(maxsize=1024)
def query_work(
    layout: SifLayout | RangeLayout,
    scope: Scope,
    block: int,
    step: int,
    heads: int,
    workers: int | None,
    device: torch.device,
    fill: bool = False,
) -> WorkList:
    """Tiles of query rows over their key ranges, on ``device``.

    Args:
        block, step: rows per tile, and keys per step.
        heads: programs per tile.
        workers: programs that the device runs at a time; None cuts each tile by its own length alone.
        fill: cut the tiles of the last round, too, where that pays. Needs workers.
    """
    return _work_list(layout.ranges(scope).query_runs, block, step, heads, workers, device, fill)


@lru_cache(maxsize=1024)
def key_work(
    layout: SifLayout | RangeLayout,
    scope: Scope,
    block: int,
    step: int,
    heads: int,
    workers: int | None,
    device: torch.device,
) -> WorkList:
    """Tiles of key rows over the query ranges that see them: the transposed view of the mask, for dK and dV."""
    return _work_list(layout.ranges(scope).key_runs, block, step, heads, workers, device)


def hold(plan: T, device: torch.device, *lists: Held | None) -> T:
    """``plan``, whose lists the current stream is about to read.

    They may leave their caches before it has: the allocator, which would hand their memory out again, is told of every
    stream once. A replay of a CUDA graph reads them whenever it likes: what was captured is kept for good.
    """
    if _is_capturing(device):
        _captured[id(plan)] = plan
    elif device.type == "cuda":
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        for used in lists:
            if used is not None and stream not in used.streams:
                used.memory.record_stream(torch.cuda.current_stream(device))
                used.streams.add(stream)
    return plan


def _work_list(
    runs: np.ndarray, block: int, step: int, heads: int, workers: int | None, device: torch.device, fill: bool = False
) -> WorkList:
    """The work on ``runs``, (runs, 7) as in `RangeLayout.key_runs`."""
    check_plannable(device)
    tiles = cut(runs, block)
    steps = -(-(tiles[:, 3] + tiles[:, 5]) // step)
    longest_first = np.argsort(-steps, kind="stable")
    steps = steps[longest_first]
    share = INVARIANT_STEPS if workers is None else -(-heads * int(steps.sum()) // workers)
    pieces = np.maximum(1, -(-steps // max(share, MIN_STEPS_TO_SPLIT - 1)))
    if fill and workers is not None:
        pieces = _fill(steps, pieces, heads, workers)

    slots = np.where(pieces > 1, pieces, 0)
    first_slot = np.cumsum(slots) - slots
    merges = np.zeros((int((pieces > 1).sum()), 8), dtype=np.int32)
    split = np.take(tiles, longest_first[pieces > 1], axis=0)
    merges[:, 0], merges[:, 1], merges[:, 4] = split[:, 0], split[:, 0] + split[:, 1], split[:, 6]
    merges[:, 2], merges[:, 3] = first_slot[pieces > 1], pieces[pieces > 1]

    tile = np.repeat(np.arange(len(tiles)), pieces)
    piece = np.arange(len(tile)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    tiles = np.take(tiles, longest_first[tile], axis=0)  # of whole rows, several times as fast as an index
    steps, pieces = steps[tile], pieces[tile]
    rows = np.empty((len(tile), 8), dtype=np.int32)
    rows[:, 0], rows[:, 1], rows[:, 7] = tiles[:, 0], tiles[:, 0] + tiles[:, 1], tiles[:, 6]
    for end in (0, 1):
        cut_at = np.minimum(steps * (piece + end) // pieces * step, tiles[:, 3] + tiles[:, 5])
        in_a = np.minimum(cut_at, tiles[:, 3])
        rows[:, 2 + end], rows[:, 4 + end] = tiles[:, 2] + in_a, tiles[:, 4] + cut_at - in_a
    rows[:, 6] = np.where(pieces > 1, first_slot[tile] + piece, -1)
    both = upload(np.concatenate([rows, merges]), device)
    return WorkList(both[: len(rows)], both[len(rows) :], len(rows), len(merges), int(slots.sum()), set())


def _fill(steps: np.ndarray, pieces: np.ndarray, heads: int, workers: int) -> np.ndarray:
    """``pieces`` of tiles of so many steps, longest first, or more of the last ones if all are then done earlier."""
    rounds, last = divmod(heads * int(pieces.sum()), workers)
    if not 0 < rounds < MANY_ROUNDS or last == 0:
        return pieces
    tail = slice(len(steps) - -(-last // heads), None)
    best, least = pieces, WORTH_IT * _steps_to_the_end(steps, pieces, heads, workers)
    for most in range(2, MOST_PIECES + 1):
        filled = pieces.copy()
        filled[tail] = np.maximum(pieces[tail], np.minimum(most, steps[tail]))
        end = _steps_to_the_end(steps, filled, heads, workers)
        if end < least:
            best, least = filled, end
    return best


def _steps_to_the_end(steps: np.ndarray, pieces: np.ndarray, heads: int, workers: int) -> float:
    """Steps until all is done and merged, by rounds: of each, the longest item goes to who has least to do."""
    costs = np.repeat(np.repeat(-(-steps // pieces) + ITEM_COST, pieces), heads)
    costs = -np.sort(-costs)
    loads = np.zeros(workers)
    for first in range(0, len(costs), workers):
        taken = costs[first : first + workers]
        loads.sort()
        loads[: len(taken)] += taken
    parts = heads * int(pieces[pieces > 1].sum())
    return float(loads.max()) + MERGE_COST * (parts > 0) + PART_COST * parts


def cut(runs: np.ndarray, block: int) -> np.ndarray:
    """``runs`` cut into tiles of up to ``block`` rows, all of a run but the last full."""
    count = -(-runs[:, 1] // block)
    tiles = np.repeat(runs, count, 0)
    done = (np.arange(len(tiles)) - np.repeat(np.cumsum(count) - count, count)) * block
    tiles[:, 0] += done
    tiles[:, 1] = np.minimum(tiles[:, 1] - done, block)
    return tiles


def check_plannable(device: torch.device) -> None:
    """Refuse to plan in the capture of a CUDA graph.

    Raises:
        RuntimeError: the current stream is being captured.
    """
    if _is_capturing(device):
        raise RuntimeError(
            "the first call with a layout uploads its work list, which a CUDA graph cannot capture: "
            "run it once before the capture"
        )


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(table: np.ndarray, device: torch.device) -> Tensor:
    """An int32 table on ``device``. The caller may use it on any stream at once, and lets `hold` know of that.

    On a GPU it comes from pinned memory on a stream that only such copies use: waiting for that one, the host waits for
    the copy and not for what other streams still have to do.
    """
    tensor = torch.from_numpy(table)
    if device.type != "cuda":
        return tensor.to(device)
    copies = _stream_of_copies(device)
    with torch.cuda.stream(copies):
        on_device = tensor.pin_memory().to(device, non_blocking=True)
    copies.synchronize()
    return on_device


@cache
def _stream_of_copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
