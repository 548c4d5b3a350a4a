"""Masks of two ranges: every run of query rows sees at most two contiguous ranges of key rows, A and B.

This is what all backends work from; `SifLayout` describes clips and frames and becomes one of these. Stated for the
keys, the same mask is `RangeLayout.key_runs`: it is derived, and a mask in which some keys are seen by more than two
separate runs of query rows is refused, since no kernel could compute their gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
import torch

from tivtok_kernels.lengths import as_length, as_lengths, boundaries

Range = tuple[int, int]  # start and end


class Segment(NamedTuple):
    """A run of query rows that share their two key ranges (starts and lengths in rows; an empty range has length 0)."""

    q_start: int
    q_len: int
    a_start: int
    a_len: int
    b_start: int
    b_len: int


@dataclass(frozen=True, eq=False)
class RangeLayout:
    """Runs of query rows with the two ranges of key rows that each of them sees. Immutable and hashable.

    Made by `from_runs`, by one of the other constructors, or by `SifLayout.ranges` and `SifLayout.frame_windows`.

    Attributes:
        table: int64 (runs, 6), not writable: the fields of `Segment`, in row order, without empty runs.
        k_rows: rows of the key tensor.
        a_rows: None or, where range A counts rows of a tensor of its own, the rows of that.
        q_rows: query rows.
        encoded: all these numbers as one int64 CPU tensor, for operators; not to be written to.
    """

    table: np.ndarray
    k_rows: int
    a_rows: int | None = None
    q_rows: int = field(init=False)
    encoded: torch.Tensor = field(init=False, repr=False)
    _identity: bytes = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = np.ascontiguousarray(self.table, dtype=np.int64).reshape(-1, 6)
        table = table[table[:, 1] > 0]
        table.setflags(write=False)
        numbers = np.concatenate([[self.k_rows, -1 if self.a_rows is None else self.a_rows], table.reshape(-1)])
        with torch.inference_mode(False):  # a layout outlives the mode it was made in
            encoded = torch.from_numpy(numbers)
        known = {
            "table": table,
            "encoded": encoded,
            "q_rows": int(table[:, 1].sum()),
            "_identity": numbers.tobytes(),
            "_hash": hash(numbers.tobytes()),  # looked up several times per call
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, RangeLayout) and self._identity == other._identity)

    @cached_property
    def calls(self) -> dict[Any, Any]:
        """What the public functions found out of calls with this layout."""
        return {}

    def __reduce__(self) -> tuple[object, ...]:
        return RangeLayout, (self.table, self.k_rows, self.a_rows)

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, Range, Range]], num_keys: int) -> RangeLayout:
        """Any mask of this kind: ``from_runs([(4, (0, 2), (2, 6)), (2, (0, 2), (6, 8))], num_keys=8)``.

        Args:
            runs: in row order, the query rows of each run and its ranges A and B as (start, end) in key rows; an
                empty range has start == end.
            num_keys: key rows.

        Raises:
            TypeError: a number is not an integer.
            ValueError: a range is not within the keys, A and B overlap, rows see no key, or keys are seen by more
                than two separate runs of rows.
        """
        k_rows = as_length("num_keys", num_keys)
        table, start = [], 0
        for i, run in enumerate(runs):
            try:
                rows, (a, a_end), (b, b_end) = run
            except (TypeError, ValueError):
                raise TypeError(f"runs[{i}] must be (rows, (A, A end), (B, B end)), got {run!r}") from None
            rows, *ends = (as_length(f"runs[{i}]", n) for n in (rows, a, a_end, b, b_end))
            a, a_end, b, b_end = ends
            if not (a <= a_end <= k_rows and b <= b_end <= k_rows):
                raise ValueError(f"ranges of runs[{i}] must be within the {k_rows} keys, got {run}")
            if max(a, b) < min(a_end, b_end):
                raise ValueError(f"ranges of runs[{i}] must not overlap, got {run}")
            if rows and a == a_end and b == b_end:
                raise ValueError(f"rows must see at least one key, but runs[{i}] is {run}")
            table.append((start, rows, a, a_end - a, b, b_end - b))
            start += rows
        layout = cls(np.array(table, dtype=np.int64).reshape(-1, 6), k_rows)
        layout.key_runs  # noqa: B018 (refuses what has none)
        return layout

    @classmethod
    def documents(cls, lengths: Sequence[int]) -> RangeLayout:
        """Packed documents: the rows of each see that document alone."""
        start = boundaries(as_lengths("lengths", lengths))
        return cls.from_runs([(end - row, (row, end), (end, end)) for row, end in _pairs(start)], start[-1])

    @classmethod
    def cross(cls, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> RangeLayout:
        """Packed cross-attention: the i-th ``query_lengths[i]`` rows see the i-th ``key_lengths[i]`` keys.

        Raises:
            ValueError: there are not as many of both, or rows have no keys.
        """
        rows = as_lengths("query_lengths", query_lengths)
        keys = boundaries(as_lengths("key_lengths", key_lengths))
        if len(rows) != len(keys) - 1:
            raise ValueError(
                f"query_lengths and key_lengths must be as many, got {len(rows)} and {len(keys) - 1} lengths"
            )
        pairs = zip(rows, _pairs(keys), strict=True)
        return cls.from_runs([(n, (key, end), (end, end)) for n, (key, end) in pairs], keys[-1])

    @classmethod
    def shared_prefix(
        cls, prefix: Sequence[int], continuations: Sequence[Sequence[int]], *, prefix_queries: bool = True
    ) -> RangeLayout:
        """Prefixes with many continuations each: these see their prefix and themselves, the prefix sees itself.

        Keys are packed group after group as [prefix | continuation 1 | ...], and so are queries. There is no causal
        order inside a prefix or a continuation.

        Args:
            prefix: tokens of each group's prefix.
            continuations: for each group, the tokens of each continuation.
            prefix_queries: False where the prefix is cached: the queries are then the continuations' rows alone.
        """
        prefixes = as_lengths("prefix", prefix)
        if len(prefixes) != len(continuations):
            raise ValueError(
                f"prefix and continuations must be as many, got {len(prefixes)} and {len(continuations)} groups"
            )
        runs, key = [], 0
        for group, length in enumerate(prefixes):
            shared = (key, key + length)
            own = _pairs(boundaries(as_lengths(f"continuations[{group}]", continuations[group]), first=shared[1]))
            runs += [(length, shared, (shared[1], shared[1]))] if prefix_queries else []
            runs += [(end - start, shared, (start, end)) for start, end in own]
            key = own[-1][1] if own else shared[1]
        return cls.from_runs(runs, key)

    @classmethod
    def block_diffusion(cls, lengths: Sequence[int], block: int) -> RangeLayout:
        """Training of block diffusion (BD3-LM, arXiv 2503.09573): each sequence as [noisy | clean].

        Noisy block b sees itself and the clean blocks before b; clean block b sees the clean blocks up to and with b.

        Args:
            lengths: tokens of each sequence; it takes twice as many rows.
            block: tokens of a block; the last of a sequence may be shorter.

        Raises:
            ValueError: block is not positive.
        """
        if as_length("block", block) == 0:
            raise ValueError("block must be positive, got 0")
        runs: list[tuple[int, Range, Range]] = []
        first = 0
        for length in as_lengths("lengths", lengths):
            clean = first + length
            blocks = [(start, min(start + block, length)) for start in range(0, length, block)]
            runs += [(end - start, (clean, clean + start), (first + start, first + end)) for start, end in blocks]
            runs += [(end - start, (clean, clean + end), (clean, clean)) for start, end in blocks]
            first += 2 * length
        return cls.from_runs(runs, first)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The rows of `table`."""
        return tuple(Segment(*row) for row in self.table.tolist())

    @cached_property
    def area(self) -> int:
        """Visible (query, key) pairs: a forward pass costs ``4 * area * head_dim`` FLOPs per head."""
        return int((self.table[:, 1] * (self.table[:, 3] + self.table[:, 5])).sum())

    def visibility(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The dense mask, for tests and pictures: bool (q_rows, k_rows), True where the query sees the key.

        With range A in a tensor of its own: (q_rows, a_rows + k_rows), its columns first.
        """
        apart = self.a_rows or 0
        mask = torch.zeros(self.q_rows, apart + self.k_rows, dtype=torch.bool, device=device)
        for row, rows, a, a_len, b, b_len in self.table.tolist():
            mask[row : row + rows, a : a + a_len] = True
            mask[row : row + rows, apart + b : apart + b + b_len] = True
        return mask

    @cached_property
    def query_runs(self) -> np.ndarray:
        """int64 (runs, 7): `table` and a column of zeros, as in `key_runs`."""
        return np.pad(self.table, ((0, 0), (0, 1)))

    @cached_property
    def key_runs(self) -> np.ndarray:
        """The mask as its keys have it: int64 (runs, 7) of key rows: start and length, then start and length of the
        (at most two) ranges of query rows that see them, then 1 if the keys are of range A's own tensor, else 0.

        Raises:
            ValueError: some keys are seen by more than two separate runs of rows.
        """
        a, b = self.table[:, 2:4], self.table[:, 4:6]
        if self.a_rows is None:
            return _seen_by(self.table, (a, b), self.k_rows, 0)
        return np.concatenate([_seen_by(self.table, (a,), self.a_rows, 1), _seen_by(self.table, (b,), self.k_rows, 0)])

    def ranges(self, scope: str = "ranges") -> RangeLayout:
        """Itself, as `SifLayout.ranges` of a layout of clips."""
        return self

    def repeat(self, batch: int) -> RangeLayout:
        """``batch`` copies behind one another, of rows and of keys."""
        shifts = np.array([self.q_rows, 0, self.k_rows if self.a_rows is None else self.a_rows, 0, self.k_rows, 0])
        table = self.table[None] + np.arange(batch)[:, None, None] * shifts
        return RangeLayout(table, batch * self.k_rows, None if self.a_rows is None else batch * self.a_rows)

    @staticmethod
    def from_tensor(encoded: torch.Tensor) -> RangeLayout:
        """The layout that `encoded` is of. Cached by content."""
        return _decode(encoded.numpy().tobytes())


@lru_cache(maxsize=1024)
def _decode(data: bytes) -> RangeLayout:
    k_rows, a_rows, *_ = numbers = np.frombuffer(data, dtype=np.int64)
    return RangeLayout(numbers[2:], int(k_rows), None if a_rows < 0 else int(a_rows))


def _pairs(bounds: Sequence[int]) -> list[Range]:
    return list(itertools.pairwise(bounds))


def _seen_by(table: np.ndarray, ranges: tuple[np.ndarray, ...], num_keys: int, in_tiv: int) -> np.ndarray:
    """`RangeLayout.key_runs` of the keys that ``ranges``, (runs, 2) each, are of.

    Keys are cut where any range starts or ends. Over the pieces, each run of rows sees two intervals. It begins a
    range of query rows for the pieces that the run before it does not see, and ends one for those that the next
    does not see; both are differences of two pairs of intervals.
    """
    starts = np.concatenate([np.where(r[:, 1] > 0, r[:, 0], 0) for r in ranges])
    ends = np.concatenate([np.where(r[:, 1] > 0, r.sum(1), 0) for r in ranges])
    cuts = np.sort(np.concatenate([starts, ends, [0, num_keys]]))
    cuts = cuts[np.diff(cuts, prepend=-1) > 0]
    seen = np.searchsorted(cuts, np.stack([starts, ends], 1)).reshape(len(ranges), -1, 2)
    if len(ranges) == 1:
        seen = np.concatenate([np.zeros_like(seen), seen])
    later, not_earlier = seen[0] > seen[1], seen[0] >= seen[1]
    a_is_second = (later[:, 0] | later[:, 1]) & not_earlier[:, 0] & not_earlier[:, 1]  # disjoint, but may be empty
    in_order = np.where(a_is_second[:, None], seen[::-1], seen).transpose(1, 0, 2).reshape(-1, 4)

    nothing = np.zeros((1, 4), dtype=np.int64)
    before, after = np.concatenate([nothing, in_order[:-1]]), np.concatenate([in_order[1:], nothing])
    pieces = len(cuts) - 1
    key, first = _difference(in_order, before, cuts)
    _, last = _difference(in_order, after, cuts)
    count = np.bincount(key, minlength=pieces)
    rank = np.arange(len(key)) - (np.cumsum(count) - count)[key]

    runs = np.zeros((pieces, 7), dtype=np.int64)
    runs[:, 0], runs[:, 1], runs[:, 6] = cuts[:-1], np.diff(cuts), in_tiv
    row = table[first, 0]
    runs[key, 2 + 2 * rank] = row
    runs[key, 3 + 2 * rank] = table[last, 0] + table[last, 1] - row
    new = np.ones(pieces, dtype=bool)
    new[1:] = reduce(np.logical_or, (x[1:] != x[:-1] for x in runs[:, 2:].T))
    kept = runs[new]
    kept[:, 1] = np.diff(np.append(kept[:, 0], num_keys))
    return kept[kept[:, 1] > 0]


def _difference(x: np.ndarray, y: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(piece, run) of all pieces that a run's pair of intervals in ``x`` (runs, 4) has and that in ``y`` has not, by
    piece and then by run.

    Raises:
        ValueError: a piece occurs more than twice.
    """
    gap_start = np.stack([np.zeros(len(y), dtype=np.int64), y[:, 1], y[:, 3]], 1)
    gap_end = np.stack([y[:, 0], y[:, 2], np.full(len(y), len(cuts))], 1)
    start = np.maximum(x[:, 0::2, None], gap_start[:, None])
    end = np.minimum(x[:, 1::2, None], gap_end[:, None])
    run, *_ = found = np.nonzero(start < end)
    start, length = start[found], (end - start)[found]
    often = np.cumsum(np.bincount(start, minlength=len(cuts)) - np.bincount(start + length, minlength=len(cuts)))
    if often.max(initial=0) > 2:
        piece = int(often.argmax())
        raise ValueError(
            "keys must be seen by at most two separate runs of query rows, "
            f"but keys {cuts[piece]} to {cuts[piece + 1]} are seen by {often[piece]}"
        )
    piece = np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
    run = np.repeat(run, length)
    order = np.argsort(piece, kind="stable")
    return piece[order], run[order]
