"""Sharing of TIV sets by the chunks of a video, decided as the chunks come, and the mean that they share (Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

TivSets = int | Literal["auto"]

# "auto" starts a new set above this `tiv_distance`. Below the small one sharing costs hardly any quality. The larger
# one holds while chunks that ended early, at cuts, have added sets that sharing has not saved yet: they gained more
# than sharing loses (docs/long-video.md).
AUTO_DISTANCE, AUTO_DISTANCE_IN_DEBT = 0.007, 0.02


class TivMean:
    """Running mean of the TIV tokens of chunks that share a set (Eq. 6)."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._chunks = 0

    def add(self, tiv: Tensor) -> None:
        self._chunks += 1
        self.value = tiv if self.value is None else self.value + (tiv - self.value) / self._chunks


def mean_tiv(chunks: Iterable[Tensor]) -> Tensor:
    """Eq. 6: the mean of one or more chunks' TIV tokens (..., N_TIV, D), holding one of them at a time."""
    mean = TivMean()
    for tiv in chunks:
        mean.add(tiv)
    assert mean.value is not None
    return mean.value


class Sharing:
    """Gives every chunk its TIV set; takes chunks as they come and keeps one mean in memory.

    "auto" starts a set where a chunk is too far from the mean of the current one for reuse to pay. With a fixed number
    of sets, how many chunks each gets is known only at the end of the video.

    Args:
        tiv_sets: how many TIV sets the video gets.
        auto_distances: the `tiv_distance` above which "auto" starts a new set, without and with sets to be saved.

    Raises:
        TypeError: ``tiv_sets`` is no whole number.
    """

    def __init__(
        self, tiv_sets: TivSets, auto_distances: tuple[float, float] = (AUTO_DISTANCE, AUTO_DISTANCE_IN_DEBT)
    ) -> None:
        if tiv_sets != "auto" and not hasattr(tiv_sets, "__index__"):
            raise TypeError(f'tiv_sets must be a whole number or "auto", got {tiv_sets!r}')
        self.tiv_sets = tiv_sets
        self._auto_distances = auto_distances
        self._debt = 0.0  # how many more sets there are than with chunks of equal length
        self._mean = TivMean()
        self._sets: list[int] = []

    def add(self, tiv: Tensor, length: float = 1.0) -> None:
        """Take the next chunk: its TIV tokens (..., N_TIV, D), and its length as a fraction of a full chunk."""
        if self.tiv_sets != "auto":
            self._sets.append(0)
            return
        starts = self._mean.value is None or self._is_far(tiv.detach(), self._mean.value)
        if starts:
            self._mean = TivMean()
        elif self._debt > 0:
            self._debt -= 1
        self._mean.add(tiv.detach())
        self._debt += 1 - length
        self._sets.append(self._sets[-1] + starts if self._sets else 0)

    def set_of_chunk(self) -> Tensor:
        """The TIV set of each chunk so far, int64 (K,), ascending from 0.

        Raises:
            ValueError: there are fewer chunks than TIV sets.
        """
        if self.tiv_sets == "auto":
            return torch.tensor(self._sets)
        return share_tiv_sets(len(self._sets), self.tiv_sets)

    def _is_far(self, tiv: Tensor, mean: Tensor) -> bool:
        return tiv_distance(tiv, mean) > self._auto_distances[self._debt > 0]


def tiv_distance(a: Tensor, b: Tensor) -> float:
    """|a - b|^2 / (|a|^2 + |b|^2): 0 for equal tokens, about 1 for unrelated ones around zero."""
    energy = a.square().sum() + b.square().sum()
    return float((a - b).square().sum() / energy) if energy > 0 else 0.0


def share_tiv_sets(num_chunks: int, tiv_sets: int) -> Tensor:
    """(K,) int64: which of ``tiv_sets`` TIV sets each chunk shares, in runs as equal as they can be.

    Raises:
        ValueError: ``tiv_sets`` is not between 1 and the number of chunks.
    """
    if not 1 <= tiv_sets <= num_chunks:
        raise ValueError(f"tiv_sets must be between 1 and the number of chunks, {num_chunks}, got {tiv_sets}")
    return torch.arange(num_chunks) * tiv_sets // num_chunks


def merge_tiv(tiv: Tensor, set_of_chunk: Tensor) -> Tensor:
    """(B, K, N_TIV, D) -> (B, S, N_TIV, D): each set the mean over its chunks (Eq. 6)."""
    counts = set_of_chunk.bincount().tolist()
    return torch.stack([mean_tiv(chunks.unbind(dim=1)) for chunks in tiv.split(counts, dim=1)], dim=1)
