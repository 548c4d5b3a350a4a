"""Time against frames, TIV tokens and clips, with fitted exponents: SIF and IB linear in frames, dense quadratic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.attention.cases import Case
from benchmarks.attention.peers import COPIED, DENSE, default_peer
from benchmarks.compare import Record, all_peers, measure
from tivtok_kernels import Scope, SifLayout


class Sizes(NamedTuple):
    """What a sweep holds fixed."""

    num_tiv: int
    frame_tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype


class Sweep(NamedTuple):
    title: str
    axis: str
    values: tuple[int, ...]
    scope: Scope
    layout: Callable[[Sizes, int], SifLayout]


def _frames(sizes: Sizes, frames: int) -> SifLayout:
    return SifLayout.uniform(1, sizes.num_tiv, frames, sizes.frame_tokens)


def _tiv(sizes: Sizes, num_tiv: int) -> SifLayout:
    return SifLayout.uniform(1, num_tiv, 16, sizes.frame_tokens)


def _clips(sizes: Sizes, clips: int) -> SifLayout:
    return SifLayout.uniform(clips, sizes.num_tiv, 4, sizes.frame_tokens)


SWEEPS = (
    Sweep("encoder, frames", "frame groups", (4, 8, 16, 32, 64, 128, 256, 512), "clip", _frames),
    Sweep("broadcast, frames", "frame groups", (4, 8, 16, 32, 64, 128, 256, 512), "broadcast", _frames),
    Sweep("encoder, TIV tokens", "TIV tokens per clip", (8, 16, 32, 64, 128, 256, 512), "clip", _tiv),
    Sweep("encoder, clips", "clips", (1, 2, 4, 8, 16, 32, 64), "clip", _clips),
)


def sizes(device: torch.device) -> Sizes:
    """The T128 preset's on a GPU; on a CPU small frames and few heads, so that 512 frame groups take seconds."""
    if device.type == "cuda":
        return Sizes(num_tiv=96, frame_tokens=1032, heads=12, head_dim=64, dtype=torch.bfloat16)
    return Sizes(num_tiv=16, frame_tokens=64, heads=4, head_dim=32, dtype=torch.float32)


def measure_sweep(sweep: Sweep, device: torch.device, seconds: float) -> Record:
    """Forward time of the default backend and its plainest rivals at each value, and the fitted exponents.

    Args:
        seconds: roughly how long each value takes; slow ones take their minimum of rounds.
    """
    fixed = sizes(device)
    series: dict[str, dict[str, float]] = {}
    for value in sweep.values:
        layout = sweep.layout(fixed, value)
        case = Case(f"{value}", layout, sweep.scope, fixed.dtype, heads=fixed.heads, head_dim=fixed.head_dim)
        wanted = (default_peer(case, device), COPIED, DENSE)
        record = measure(case, device, seconds, [peer for peer in all_peers() if peer.name in wanted]).record
        for name, result in record["peers"].items():
            series.setdefault(name, {})[str(value)] = result["median_s"]
    return {
        "axis": sweep.axis,
        "fixed": fixed._asdict() | {"dtype": str(fixed.dtype)},
        "series": series,
        "exponents": {name: exponent(points) for name, points in series.items()},
    }


def exponent(points: dict[str, float]) -> float | None:
    """Slope of log time over log value, over the upper half of the values, where fixed costs no longer hide it."""
    upper = sorted((int(value), seconds) for value, seconds in points.items())[len(points) // 2 :]
    if len(upper) < 2:
        return None
    values, times = np.log(np.array(upper)).T
    return float(np.polyfit(values, times, 1)[0])
