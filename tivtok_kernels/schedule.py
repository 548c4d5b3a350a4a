"""Work lists: which block of rows goes over which ranges, in which order, cut into how many pieces.

Shared by the backends that launch one program per (tile, head). A tile is up to ``block`` rows of one run (see
`SifLayout.segments`), so no tile mixes rows with different ranges. It walks range A and B in steps of ``step`` rows:
full steps first, then what is left of both, joined end to end. Any piece of ``n`` rows of [A | B] therefore takes
``ceil(n / step)`` steps, wherever it was cut.

Tiles are listed longest first. A tile longer than its share of the machine (all steps of all heads / workers) is cut
into pieces of almost equal length; they write partial results, which a merge adds up in the order of the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tivtok_kernels.layout import Scope, SifLayout

T = TypeVar("T")

# Plans that CUDA graphs were captured with.
_captured: dict[int, object] = {}

# Tiles of fewer steps stay whole: the pieces would cost more to merge than they save in waiting.
MIN_STEPS_TO_SPLIT = 8


class Run(NamedTuple):
    """Rows with one pair of ranges. Queries with their key ranges, or keys with their query ranges."""

    start: int
    length: int
    a_start: int
    a_len: int
    b_start: int
    b_len: int
    in_tiv: bool  # the rows are of the TIV tensor (keys of scope "broadcast")


class WorkList(NamedTuple):
    """Attributes:

    tiles: int32 (tiles, 8): row, row end, A, A end, B, B end, slot of its partial result or -1, in_tiv (0 or 1).
    merges: int32 (merges, 8): row, row end, first slot, slots, in_tiv, 0, 0, 0.
    num_slots: partial results per head.
    """

    tiles: Tensor
    merges: Tensor
    num_tiles: int
    num_merges: int
    num_slots: int


@lru_cache(maxsize=1024)
def query_work(
    layout: SifLayout, scope: Scope, block: int, step: int, heads: int, workers: int, device: torch.device
) -> WorkList:
    """Tiles of query rows over their key ranges, on ``device``.

    Args:
        block, step: rows per tile, and keys per step.
        heads: programs per tile.
        workers: programs that the device runs at a time.
    """
    runs = [Run(*segment, in_tiv=False) for segment in layout.segments(scope)]
    return _work_list(runs, block, step, heads, workers, device)


@lru_cache(maxsize=1024)
def key_work(
    layout: SifLayout, scope: Scope, block: int, step: int, heads: int, workers: int, device: torch.device
) -> WorkList:
    """Tiles of key rows over the query ranges that see them: the transposed view of the mask, for dK and dV."""
    return _work_list(key_runs(layout, scope), block, step, heads, workers, device)


def keep_if_captured(plan: T, device: torch.device) -> T:
    """``plan``, which holds work lists. A replay of a CUDA graph reads them, so they must outlive the caches."""
    if _is_capturing(device):
        _captured[id(plan)] = plan
    return plan


def key_runs(layout: SifLayout, scope: Scope) -> list[Run]:
    """Every run of key rows with the (at most two) ranges of query rows that see it.

    | scope       | keys    | range A    | range B |
    |-------------|---------|------------|---------|
    | "clip"      | TIV     | whole clip | -       |
    | "clip"      | frame t | TIV        | frame t |
    | "tiv"       | TIV     | whole clip | -       |
    | "tiv"       | frame t | -          | frame t |
    | "broadcast" | TIV, in a tensor of its own | all frames | - |
    | "broadcast" | frame t | -          | frame t |
    """
    runs = []
    row = tiv_row = 0
    for num_tiv, frames in zip(layout.num_tiv, layout.frame_tokens, strict=True):
        clip = row
        if scope == "broadcast":
            runs.append(Run(tiv_row, num_tiv, clip, sum(frames), clip, 0, True))
        else:
            runs.append(Run(clip, num_tiv, clip, num_tiv + sum(frames), clip, 0, False))
            row += num_tiv
        for tokens in frames:
            runs.append(Run(row, tokens, clip, num_tiv if scope == "clip" else 0, row, tokens, False))
            row += tokens
        tiv_row += num_tiv
    return [run for run in runs if run.length]


def _work_list(runs: Iterable[Run], block: int, step: int, heads: int, workers: int, device: torch.device) -> WorkList:
    if _is_capturing(device):
        raise RuntimeError(
            "the first call with a layout uploads its work list, which a CUDA graph cannot capture: "
            "run it once before the capture"
        )
    blocks = sorted((tile for run in runs for tile in _blocks(run, block)), key=lambda t: _steps(t, step), reverse=True)
    share = -(-heads * sum(_steps(tile, step) for tile in blocks) // workers)
    longest = max(share, MIN_STEPS_TO_SPLIT - 1)
    tiles: list[tuple[int, ...]] = []
    merges: list[tuple[int, ...]] = []
    slots = 0
    for tile in blocks:
        rows = (tile.start, tile.start + tile.length)
        pieces = _pieces(tile, step, longest)
        if len(pieces) > 1:
            merges.append((*rows, slots, len(pieces), tile.in_tiv, 0, 0, 0))
        for ranges in pieces:
            tiles.append((*rows, *ranges, slots if len(pieces) > 1 else -1, tile.in_tiv))
            slots += len(pieces) > 1
    return WorkList(_upload(tiles, device), _upload(merges, device), len(tiles), len(merges), slots)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _blocks(run: Run, block: int) -> Iterator[Run]:
    """Tiles of up to ``block`` rows, all of them but the last full."""
    for start in range(0, run.length, block):
        yield run._replace(start=run.start + start, length=min(block, run.length - start))


def _steps(tile: Run, step: int) -> int:
    return -(-(tile.a_len + tile.b_len) // step)


def _pieces(tile: Run, step: int, longest: int) -> list[tuple[int, int, int, int]]:
    """[A | B] cut into pieces of at most ``longest`` steps, each as (A, A end, B, B end)."""
    steps = _steps(tile, step)
    count = max(1, -(-steps // longest))
    cuts = [min(steps * i // count * step, tile.a_len + tile.b_len) for i in range(count + 1)]
    in_a = [tile.a_start + min(cut, tile.a_len) for cut in cuts]
    in_b = [tile.b_start + max(cut - tile.a_len, 0) for cut in cuts]
    return list(zip(in_a, in_a[1:], in_b, in_b[1:], strict=False))


def _upload(rows: list[tuple[int, ...]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).view(-1, 8).to(device)
