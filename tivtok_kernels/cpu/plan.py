"""What the CPU engine's threads do: units of work, and the merges of what several units have of the same rows.

A unit is some frames of a clip, or some rows of one large frame, for one key head. It packs the clip's TIV keys once,
then goes from frame to frame, and takes the TIV rows along over the keys of these frames. Where a clip has several
units, each leaves what it has of the TIV rows (or keys) in a slot of a workspace; slots are added up in their order.

A mask of two ranges is planned as if range A were TIV keys and each run of rows a frame with range B as its keys; a run
that shares range A with no other goes through the longer range and packs the shorter one at once. Its backward has no
units, since runs may share keys of range B: each dQ is made whole by one thread, and so are each dK and dV.

Units depend on lengths alone, never on the number of threads: results are the same bit for bit for any number.
They are made by arithmetic on whole arrays, with a step of Python per unit and none per frame.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.ranges import RangeLayout
from tivtok_kernels.schedule import cut

# Frames go into one unit until it has so many (query, key) pairs of one query head: 0.25 to 0.5 ms at head_dim 64.
PAIRS_PER_UNIT = 1 << 17

# Slots of TIV rows are rounded up to this many rows (SLOT_ROWS of csrc/cpu/params.h).
SLOT_ROWS = 48

# Rows (of all heads of a key head) and keys of a run that a thread differentiates at a time: they stay in the
# second-level cache while what they see, or what sees them, passes by.
_RUN_ROWS = 384
_RUN_KEYS = 240


_NO_UNITS = np.empty((0, 13), dtype=np.int64)
_NO_RUNS = np.empty((0, 6), dtype=np.int64)


class Plan(NamedTuple):
    """Tables for csrc/cpu/params.h, int64, and how many rows the workspaces need.

    Attributes:
        units: (units, 13). frames: (frames, 4). q_merges, k_merges, frame_merges: (merges, 4).
        row_runs, key_runs: (runs, 6).
        q_slots, k_slots, frame_slots: rows of the workspaces of TIV rows, TIV keys and frame keys.
        fields: the tables as the C structure `Plan` has them.
    """

    units: Tensor
    frames: Tensor
    q_merges: Tensor
    k_merges: Tensor
    frame_merges: Tensor
    row_runs: Tensor
    key_runs: Tensor
    q_slots: int
    k_slots: int
    frame_slots: int
    fields: tuple[int, ...]


class _Clips(NamedTuple):
    """What is cut into units: clips, or neighbouring runs of rows that share range A.

    Attributes:
        tiv_row, key, num_keys: (clips,) first TIV row; first of the TIV keys (of range A), and how many.
        frames: (frames, 4) row, tokens, key, keys; without empty ones.
        clip: (frames,) the clip of each, ascending.
        pairs: (frames,) the (query, key) pairs of one query head that each costs.
    """

    tiv_row: np.ndarray
    key: np.ndarray
    num_keys: np.ndarray
    frames: np.ndarray
    clip: np.ndarray
    pairs: np.ndarray


class _Spans(NamedTuple):
    """Frames of a clip that one unit takes, or one of several pieces of a large one; (spans,) each, clip after clip."""

    clip: np.ndarray
    frame: np.ndarray
    frames: np.ndarray
    row: np.ndarray
    row_end: np.ndarray
    piece: np.ndarray
    pieces: np.ndarray


@lru_cache(maxsize=1024)
def make_plan(layout: SifLayout | RangeLayout, scope: Scope, most_rows: int) -> Plan:
    """The plan of a layout, with at most about ``most_rows`` query rows of a frame per unit."""
    clips = _runs(layout) if isinstance(layout, RangeLayout) else _clips(layout, scope)
    spans = _cut(clips, most_rows)
    clip, piece = spans.clip, spans.piece
    count = np.bincount(clip, minlength=len(clips.key))
    number = np.arange(len(clip)) - (np.cumsum(count) - count)[clip]  # of each unit in its clip
    tiv, alone = clips.num_keys, np.ones_like(count)
    sees_rows = (tiv > 0) & (scope == "clip")
    shared = np.where(sees_rows, count, alone)  # units that TIV rows are in
    k_count = np.where(tiv > 0, count, alone) if scope != "ranges" else alone
    q_rows = -(-tiv // SLOT_ROWS) * SLOT_ROWS
    q_merges, q_slot, q_slots = _slots(clips.tiv_row, tiv, q_rows, shared, clip, number)
    k_merges, k_slot, k_slots = _slots(clips.tiv_row, tiv, tiv, k_count, clip, number)
    row, tokens, _, keys = np.pad(clips.frames, ((0, 1), (0, 0)))[spans.frame].T
    first = np.where((piece == 0) & (scope != "ranges"), spans.pieces, 1)
    frame_merges, frame_slot, frame_slots = _slots(row, tokens, tokens, first, np.arange(len(clip)) - piece, piece)

    here = (number < shared[clip]) & (scope in ("clip", "tiv"))
    own, own_end = ((tiv[clip] * (number + end) // shared[clip]) * here for end in (0, 1))
    unit = [clips.tiv_row[clip], clips.key[clip], tiv[clip], *spans[1:5], own, own_end, sees_rows[clip]]
    units = np.stack([*unit, np.where(here, q_slot, -1), k_slot, frame_slot], 1, dtype=np.int64)

    _, all_rows, _, all_keys = clips.frames.T
    rows, products = (_over(x, spans) for x in (all_rows, all_rows * all_keys))
    pieces = spans.frames == 1
    rows[pieces] = (spans.row_end - spans.row)[pieces]
    products[pieces] = (rows * keys)[pieces]
    pairs = products + tiv[clip] * (rows + own_end - own + rows * sees_rows[clip])
    # The longest units first: what is left to do at the end is then short. A unit's results do not depend on it.
    units = units[np.argsort(-pairs, kind="stable")]
    tables = units, clips.frames, q_merges, k_merges, frame_merges, _NO_RUNS, _NO_RUNS
    return _plan(tables, q_slots, k_slots, frame_slots)


@lru_cache(maxsize=1024)
def plan_gradients(layout: RangeLayout, group: int) -> Plan:
    """The plan of a backward under two ranges, with ``group`` query heads to a key head."""
    rows = _run_table(layout.query_runs, max(SLOT_ROWS, _RUN_ROWS // group))
    nothing = np.empty((0, 4), dtype=np.int64)
    return _plan((_NO_UNITS, *(nothing,) * 4, rows, _run_table(layout.key_runs, _RUN_KEYS)), 0, 0, 0)


def _clips(layout: SifLayout, scope: Scope) -> _Clips:
    num_tiv = np.array(layout.num_tiv, dtype=np.int64)
    count = np.array([len(frames) for frames in layout.frame_tokens], dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(layout.frame_tokens), dtype=np.int64)
    clip = np.repeat(np.arange(len(count)), count)
    row = np.cumsum(tokens) - tokens
    tiv_row = np.cumsum(num_tiv) - num_tiv
    if scope != "broadcast":  # where TIV keys are in the same tensor
        row += np.cumsum(num_tiv)[clip]
        tiv_row += np.append(0, np.cumsum(tokens))[np.cumsum(count) - count]
    kept = tokens > 0
    row, tokens, clip = row[kept], tokens[kept], clip[kept]
    pairs = tokens * (2 * num_tiv[clip] + tokens)
    return _Clips(tiv_row, tiv_row, num_tiv, np.stack([row, tokens, row, tokens], 1), clip, pairs)


def _runs(layout: RangeLayout) -> _Clips:
    table = layout.table.copy()
    begins = np.ones(len(table), dtype=bool)
    begins[1:] = (table[1:, 2:4] != table[:-1, 2:4]).any(1)
    single = begins & np.append(begins[1:], True)
    swapped = single & (table[:, 3] > table[:, 5])
    table[swapped] = table[swapped][:, [0, 1, 4, 5, 2, 3]]
    pairs = table[:, 1] * (table[:, 3] + table[:, 5])
    key, num_keys = table[begins, 2], table[begins, 3]
    return _Clips(np.zeros_like(key), key, num_keys, table[:, [0, 1, 4, 5]], np.cumsum(begins) - 1, pairs)


def _cut(clips: _Clips, most_rows: int) -> _Spans:
    """Cut each clip: large frames into pieces of about equally many rows, small ones put together. A clip that has TIV
    keys and no frames is one span of none."""
    tokens, clip = clips.frames[:, 1], clips.clip
    frame, num_frames = np.arange(len(tokens)), len(tokens)
    pieces = -(-tokens // most_rows)
    clip_end = np.cumsum(np.bincount(clip, minlength=len(clips.key)))
    next_large = np.minimum.accumulate(np.where(pieces > 1, frame, num_frames)[::-1])[::-1]
    total = np.append(0, np.cumsum(clips.pairs))
    filled = np.searchsorted(total, total[:-1] + PAIRS_PER_UNIT)
    end = np.where(pieces > 1, frame + 1, np.minimum(np.minimum(filled, next_large), clip_end[clip]))

    ends, starts, at = end.tolist(), [], 0
    while at < num_frames:
        starts.append(at)
        at = ends[at]
    first = np.array(starts, dtype=np.int64)
    span = np.repeat(np.arange(len(first)), pieces[first])
    first, frames = first[span], (end[first] - first)[span]
    piece = np.arange(len(span)) - np.searchsorted(span, span)
    row, row_end = (tokens[first] * (piece + i) // pieces[first] * (frames == 1) for i in (0, 1))

    empty = np.flatnonzero((np.diff(clip_end, prepend=0) == 0) & (clips.num_keys > 0))
    nothing = np.zeros_like(empty)
    spans = _Spans(clip[first], first, frames, row, row_end, piece, pieces[first])
    more = _Spans(empty, clip_end[empty], nothing, nothing, nothing, nothing, nothing + 1)
    both = [np.concatenate(pair) for pair in zip(spans, more, strict=True)]
    order = np.argsort(both[0], kind="stable")
    return _Spans(*(x[order] for x in both))


def _slots(
    row: np.ndarray, length: np.ndarray, slot_rows: np.ndarray, count: np.ndarray, owner: np.ndarray, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Where ``count`` units each leave what they have of the same rows.

    Args:
        row, length, slot_rows, count: (owners,) the rows, how many a slot takes, and how many units have any.
        owner, number: (units,) whose rows a unit has, and the how-manieth of its units it is.

    Returns:
        The merges, (merges, 4); (units,) each unit's slot, -1 where it is the only one; and the rows of all slots.
    """
    several = count > 1
    rows = slot_rows * count * several
    first = np.cumsum(rows) - rows
    slot = np.where(several[owner], first[owner] + slot_rows[owner] * number, -1)
    return np.stack([row, length, first, count], 1)[several], slot, int(rows.sum())


def _over(x: np.ndarray, spans: _Spans) -> np.ndarray:
    """Sums of ``x`` (frames,) over the frames of each span."""
    total = np.append(0, np.cumsum(x))
    return total[spans.frame + spans.frames] - total[spans.frame]


def _plan(tables: tuple[np.ndarray, ...], q_slots: int, k_slots: int, frame_slots: int) -> Plan:
    with torch.inference_mode(False):  # a cached plan outlives the mode it was made in
        units, frames, q, k, frame, rows, keys = (torch.from_numpy(np.ascontiguousarray(table)) for table in tables)
    pointers = (units.data_ptr(), len(units), *(x.data_ptr() for x in (frames, q, k, frame)))
    fields = (*pointers, len(q), len(k), len(frame), rows.data_ptr(), keys.data_ptr(), len(rows), len(keys))
    return Plan(units, frames, q, k, frame, rows, keys, q_slots, k_slots, frame_slots, fields)


def _run_table(runs: np.ndarray, block: int) -> np.ndarray:
    """Runs as `RangeLayout.key_runs` has them, in pieces of up to ``block`` rows or keys, the longest first."""
    pieces = cut(runs, block)
    order = np.argsort(-pieces[:, 1] * (pieces[:, 3] + pieces[:, 5]), kind="stable")
    return pieces[order, :6]
