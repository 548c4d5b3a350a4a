"""Timing of calls: interleaved rounds, device events, a cold L2 cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]
Watch = Callable[[Call], float]  # seconds that a call takes

MIN_ROUNDS, MAX_ROUNDS = 5, 100

# Several times the L2 cache of any GPU, so that writing it evicts everything else.
_FLUSH_BYTES = 512 << 20


class Stopwatch:
    """Times one call: wall clock on a CPU; on a GPU CUDA events around it, after the L2 cache was flushed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call) -> float:
        """Seconds."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        self._flush.zero_()  # also keeps the device busy while the host prepares the call
        self._start.record()
        call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3


def interleave(calls: Mapping[str, Call], watch: Watch, seconds: float) -> dict[str, list[float]]:
    """Time all calls in turn, A B A B ..., so that drift of the machine hits them alike.

    Args:
        calls: by name.
        watch: a `Stopwatch`.
        seconds: roughly how long to measure, within MIN_ROUNDS and MAX_ROUNDS rounds. One more round warms up.

    Returns:
        The seconds of each call, round by round.
    """
    one_round = sum(watch(call) for call in calls.values())
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / max(one_round, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(watch(call))
    return samples


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
