"""Which chunks of a video share a TIV set, decided as the chunks come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

TivSets = int | Literal["auto"]

# "auto" starts a new set above this `tiv_distance`: a small one, at which sharing loses nothing, and a larger one while
# cuts have cost sets that sharing has not yet saved: ending chunks there has gained more than it loses
# (docs/long-video.md).
AUTO_DISTANCE, AUTO_DISTANCE_IN_DEBT = 0.003, 0.07


class TivRuns:
    """Runs of chunks that share TIV tokens: one running mean in memory (Eq. 6), handed on when its run ends.

    "auto" ends a run where the next chunk is too far from its mean: reuse no longer pays. With one set for the whole
    video there is one run. How many chunks each of N sets gets depends on the length of the video, so there every
    chunk is a run, and `close` says how they are to be merged.

    Args:
        tiv_sets: how many TIV sets the video gets.
        hand_on: called with the mean of each run and the number of its frame groups, in order.
        auto_distances: the `tiv_distance` above which "auto" starts a new set, without and with sets to be saved.
    """

    def __init__(
        self,
        tiv_sets: TivSets,
        hand_on: Callable[[Tensor, int], None],
        auto_distances: tuple[float, float] = (AUTO_DISTANCE, AUTO_DISTANCE_IN_DEBT),
    ) -> None:
        self.tiv_sets = tiv_sets
        self.num_runs = 0
        self._auto_distances = auto_distances
        self._debt = 0.0  # sets more than chunks of even length would have had
        self._hand_on = hand_on
        self._mean: Tensor | None = None
        self._chunks = 0
        self._groups = 0

    def add(self, tiv: Tensor, groups: int, length: float = 1.0) -> None:
        """The next chunk: its TIV tokens (..., N_TIV, D), the number of its frame groups, and its length over that of
        a chunk that no cut ends."""
        if self._mean is None or self._is_new(tiv, self._mean):
            self._end_run()
            self._mean = torch.zeros_like(tiv)
        elif self._debt > 0:
            self._debt -= 1
        self._chunks += 1
        self._groups += groups
        self._mean += (tiv - self._mean) / self._chunks
        self._debt += 1 - length

    def close(self) -> Tensor:
        """After the last chunk: int64 (runs,), the TIV set that each run belongs to.

        Raises:
            ValueError: there were fewer chunks than TIV sets.
        """
        self._end_run()
        return torch.arange(self.num_runs) if self.tiv_sets == "auto" else share_tiv_sets(self.num_runs, self.tiv_sets)

    def _is_new(self, tiv: Tensor, mean: Tensor) -> bool:
        if self.tiv_sets == "auto":
            return tiv_distance(tiv, mean) > self._auto_distances[self._debt > 0]
        return self.tiv_sets > 1

    def _end_run(self) -> None:
        if self._mean is not None:
            self._hand_on(self._mean, self._groups)
            self.num_runs += 1
        self._mean, self._chunks, self._groups = None, 0, 0


def tiv_distance(a: Tensor, b: Tensor) -> float:
    """|a - b|^2 / (|a|^2 + |b|^2): 0 for equal tokens, about 1 for unrelated ones around zero."""
    energy = a.square().sum() + b.square().sum()
    return float((a - b).square().sum() / energy) if energy > 0 else 0.0


def assign_chunks(
    tiv: Tensor,
    tiv_sets: TivSets,
    lengths: Sequence[float] | None = None,
    auto_distances: tuple[float, float] = (AUTO_DISTANCE, AUTO_DISTANCE_IN_DEBT),
) -> Tensor:
    """The TIV set of each chunk, int64 (K,), from the chunks' TIV tokens (B, K, N_TIV, D); a batch shares them.

    Args:
        lengths, auto_distances: as in `TivRuns`; no cut ends a chunk by default.

    Raises:
        ValueError: there are fewer chunks than TIV sets.
    """
    if tiv_sets != "auto":
        return share_tiv_sets(tiv.shape[1], tiv_sets)
    chunks_of_run: list[int] = []
    runs = TivRuns(tiv_sets, lambda mean, chunks: chunks_of_run.append(chunks), auto_distances)
    for k, chunk in enumerate(tiv.detach().unbind(dim=1)):
        runs.add(chunk, 1, 1.0 if lengths is None else lengths[k])
    return runs.close().repeat_interleave(torch.tensor(chunks_of_run))


def share_tiv_sets(num_chunks: int, tiv_sets: int) -> Tensor:
    """(K,) int64: which of ``tiv_sets`` TIV sets each chunk shares, in runs as equal as they can be.

    Raises:
        ValueError: ``tiv_sets`` is not between 1 and the number of chunks.
    """
    if not 1 <= tiv_sets <= num_chunks:
        raise ValueError(f"tiv_sets must be between 1 and the number of chunks, {num_chunks}, got {tiv_sets}")
    return torch.arange(num_chunks) * tiv_sets // num_chunks


def merge_tiv(tiv: Tensor, set_of_chunk: Tensor) -> Tensor:
    """Eq. 6: (B, K, N_TIV, D) -> (B, S, N_TIV, D), each set the mean over its chunks."""
    counts = set_of_chunk.bincount().tolist()
    return torch.stack([chunks.mean(dim=1) for chunks in tiv.split(counts, dim=1)], dim=1)
