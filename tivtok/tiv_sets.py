"""Which chunks of a video share a TIV set, decided as the chunks come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tivtok.model import share_tiv_sets


class TivRuns:
    """Runs of chunks that share TIV tokens: one running mean in memory (Eq. 6), handed on when its run ends.

    With one set for the whole video there is one run. How many chunks each of N sets gets depends on the length of the
    video, so there every chunk is a run, and `close` says how they are to be merged.

    Args:
        tiv_sets: how many TIV sets the video gets.
        hand_on: called with the mean (N_TIV, D) of each run and the number of its frame groups, in order.
    """

    def __init__(self, tiv_sets: int, hand_on: Callable[[Tensor, int], None]) -> None:
        self.tiv_sets = tiv_sets
        self.num_runs = 0
        self._hand_on = hand_on
        self._mean: Tensor | None = None
        self._chunks = 0
        self._groups = 0

    def add(self, tiv: Tensor, groups: int) -> None:
        """The next chunk: its TIV tokens (N_TIV, D) and the number of its frame groups."""
        if self._mean is None or self.tiv_sets != 1:
            self._end_run()
            self._mean = torch.zeros_like(tiv)
        self._chunks += 1
        self._groups += groups
        self._mean += (tiv - self._mean) / self._chunks

    def close(self) -> Tensor:
        """After the last chunk: int64 (runs,), the TIV set that each run belongs to."""
        self._end_run()
        return share_tiv_sets(self.num_runs, self.tiv_sets)

    def _end_run(self) -> None:
        if self._mean is not None:
            self._hand_on(self._mean, self._groups)
            self.num_runs += 1
        self._mean, self._chunks, self._groups = None, 0, 0
