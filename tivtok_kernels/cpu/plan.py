"""What the CPU engine's threads do: units of work, and the merges of what several units have of the same rows.

A unit is some frames of a clip, or some rows of one large frame, for one key head. It packs the clip's TIV keys once,
then goes from frame to frame, and takes the TIV rows along over the keys of these frames. Where a clip has several
units, each leaves what it has of the TIV rows (or keys) in a slot of a workspace; slots are added up in their order.

A mask of two ranges is planned as if range A were TIV keys and each run of rows a frame with range B as its keys; a run
that shares range A with no other goes through the longer range and packs the shorter one at once. Its backward has no
units, since runs may share keys of range B: each dQ is made whole by one thread, and so are each dK and dV.

Units depend on lengths alone, never on the number of threads: results are the same bit for bit for any number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.ranges import RangeLayout, Segment
from tivtok_kernels.schedule import cut

# Frames go into one unit until it has this many (query, key) pairs of one query head: about 0.2 ms at head_dim 64.
PAIRS_PER_UNIT = 1 << 17

# Slots of TIV rows are rounded up to this many rows (SLOT_ROWS of csrc/cpu/params.h).
SLOT_ROWS = 48

# Rows (of all heads of a key head) and keys of a run that a thread differentiates at a time: they stay in the
# second-level cache while what they see, or what sees them, passes by.
_RUN_ROWS = 384
_RUN_KEYS = 240


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


class _Span(NamedTuple):
    """Frames of a clip that one unit takes, and the rows of them."""

    frame: int
    frames: int
    row: int
    row_end: int


@lru_cache(maxsize=1024)
def make_plan(layout: SifLayout | RangeLayout, scope: Scope, most_rows: int) -> Plan:
    """The plan of a layout, with at most about ``most_rows`` query rows of a frame per unit."""
    builder = _Builder()
    if isinstance(layout, RangeLayout):
        for _, runs in groupby(layout.segments, key=lambda run: (run.a_start, run.a_len)):
            builder.add_runs(list(runs), most_rows)
        return builder.plan()
    row = tiv_row = 0
    for num_tiv, frames in zip(layout.num_tiv, layout.frame_tokens, strict=True):
        if scope != "broadcast":
            tiv_row = row
        row = builder.add_clip(num_tiv, frames, row + num_tiv * (scope != "broadcast"), tiv_row, scope, most_rows)
        tiv_row += num_tiv
    return builder.plan()


@lru_cache(maxsize=1024)
def plan_gradients(layout: RangeLayout, group: int) -> Plan:
    """The plan of a backward under two ranges, with ``group`` query heads to a key head."""
    rows = _run_table(layout.query_runs, max(SLOT_ROWS, _RUN_ROWS // group))
    return _Builder().plan(rows, _run_table(layout.key_runs, _RUN_KEYS))


class _Builder:
    def __init__(self) -> None:
        self.units: list[tuple[int, ...]] = []
        self.frames: list[tuple[int, ...]] = []
        self.merges: dict[str, list[tuple[int, ...]]] = {"q": [], "k": [], "frame": []}
        self.slots = {"q": 0, "k": 0, "frame": 0}

    def add_clip(
        self, num_tiv: int, lengths: tuple[int, ...], row: int, tiv_row: int, scope: Scope, most_rows: int
    ) -> int:
        """Add a clip whose frames start at ``row``; returns the row behind it."""
        first_frame = len(self.frames)
        for tokens in lengths:
            if tokens:
                self.frames.append((row, tokens, row, tokens))
            row += tokens
        frames = self.frames[first_frame:]
        rows = [tokens for _, tokens, *_ in frames]
        spans = _spans(rows, [n * (2 * num_tiv + n) for n in rows], most_rows)
        if not spans and num_tiv:
            spans = [_Span(0, 0, 0, 0)]

        pieces = Counter(span.frame for span in spans)
        shared = len(spans) if scope == "clip" and num_tiv else 1  # units that TIV rows are in
        q_slots = self._take("q", tiv_row, num_tiv, -(-num_tiv // SLOT_ROWS) * SLOT_ROWS, shared)
        k_slots = self._take("k", tiv_row, num_tiv, num_tiv, len(spans)) if num_tiv else [-1] * len(spans)
        for i, span in enumerate(spans):
            frame_slot = -1
            if span.frames == 1 and span.row_end - span.row < (tokens := frames[span.frame][1]):
                if span.row == 0:
                    frame_slots = iter(self._take("frame", frames[span.frame][0], tokens, tokens, pieces[span.frame]))
                frame_slot = next(frame_slots)
            here = i < shared and scope != "broadcast"
            unit = [tiv_row, tiv_row, num_tiv, first_frame + span.frame, span.frames, span.row, span.row_end]
            unit += [num_tiv * i // shared * here, num_tiv * (i + 1) // shared * here]
            unit += [int(scope == "clip" and num_tiv > 0), q_slots[i] if here else -1, k_slots[i], frame_slot]
            self.units.append(tuple(unit))
        return row

    def add_runs(self, runs: list[Segment], most_rows: int) -> None:
        """Add runs of rows that share range A."""
        if len(runs) == 1 and runs[0].a_len > runs[0].b_len:
            run = runs[0]
            runs = [Segment(run.q_start, run.q_len, run.b_start, run.b_len, run.a_start, run.a_len)]
        first_frame, key, num_keys = len(self.frames), runs[0].a_start, runs[0].a_len
        self.frames += [(run.q_start, run.q_len, run.b_start, run.b_len) for run in runs]
        rows = [run.q_len for run in runs]
        for span in _spans(rows, [run.q_len * (num_keys + run.b_len) for run in runs], most_rows):
            place = (first_frame + span.frame, span.frames, span.row, span.row_end)
            self.units.append((0, key, num_keys, *place, 0, 0, 0, -1, -1, -1))

    def _take(self, kind: str, row: int, length: int, slot_rows: int, count: int) -> list[int]:
        """Slots for ``count`` units' results of these rows, -1 where there is but one unit; the merge is noted."""
        if count < 2:
            return [-1] * count
        first = self.slots[kind]
        self.merges[kind].append((row, length, first, count))
        self.slots[kind] = first + slot_rows * count
        return [first + slot_rows * i for i in range(count)]

    def plan(self, row_runs: Tensor | None = None, key_runs: Tensor | None = None) -> Plan:
        # The longest units first: what is left to do at the end is then short. A unit's results do not depend on it.
        self.units.sort(key=self._pairs, reverse=True)
        units, frames = _table(self.units, 13), _table(self.frames, 4)
        q, k, frame = (_table(self.merges[kind], 4) for kind in ("q", "k", "frame"))
        rows, keys = (_table((), 6) if table is None else table for table in (row_runs, key_runs))
        pointers = (units.data_ptr(), len(units), *(x.data_ptr() for x in (frames, q, k, frame)))
        fields = (*pointers, len(q), len(k), len(frame), rows.data_ptr(), keys.data_ptr(), len(rows), len(keys))
        slots = self.slots
        return Plan(units, frames, q, k, frame, rows, keys, slots["q"], slots["k"], slots["frame"], fields)

    def _pairs(self, unit: tuple[int, ...]) -> int:
        num_tiv, frame, frames, row, row_end, first, end, sees_rows = unit[2:10]
        tokens = [(n, keys) for _, n, _, keys in self.frames[frame : frame + frames]]
        if frames == 1:
            tokens = [(row_end - row, tokens[0][1])]
        own = sum(n * (num_tiv + keys) for n, keys in tokens)
        return own + num_tiv * (end - first + sum(n for n, _ in tokens) * sees_rows)


def _spans(tokens: list[int], pairs_of: list[int], most_rows: int) -> list[_Span]:
    """Cut a clip: large frames into pieces of about equally many rows, small ones put together.

    Args:
        tokens: rows of each frame.
        pairs_of: how many (query, key) pairs of one query head each frame costs.
    """
    spans: list[_Span] = []
    first = pairs = 0
    for i, n in enumerate(tokens):
        pieces = -(-n // most_rows)
        if pieces > 1:
            if first < i:
                spans.append(_whole(first, i, tokens))
            cuts = [n * piece // pieces for piece in range(pieces + 1)]
            spans += [_Span(i, 1, start, end) for start, end in pairwise(cuts)]
            first, pairs = i + 1, 0
            continue
        pairs += pairs_of[i]
        if pairs >= PAIRS_PER_UNIT:
            spans.append(_whole(first, i + 1, tokens))
            first, pairs = i + 1, 0
    if first < len(tokens):
        spans.append(_whole(first, len(tokens), tokens))
    return spans


def _whole(first: int, end: int, tokens: list[int]) -> _Span:
    return _Span(first, end - first, 0, tokens[first] if end - first == 1 else 0)


def _run_table(runs: np.ndarray, block: int) -> Tensor:
    """Runs as `RangeLayout.key_runs` has them, in pieces of up to ``block`` rows or keys, the longest first."""
    pieces = cut(runs, block)
    order = np.argsort(-pieces[:, 1] * (pieces[:, 3] + pieces[:, 5]), kind="stable")
    with torch.inference_mode(False):
        return torch.from_numpy(np.ascontiguousarray(pieces[order, :6]))


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
    with torch.inference_mode(False):  # a cached plan outlives the mode it was made in
        return torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, width)
