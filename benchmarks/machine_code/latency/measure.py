"""Clocks of a main loop's step from times of whole calls: long tiles, as many for every SM, no TIV rows, no tails."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from tivtok_kernels import SifLayout, sif_attention
from tivtok_kernels.timing import Stopwatch, interleave

KEYS = 15360  # whole steps of 192, 160, 128, 96 and 64
TILES = (KEYS // 128, KEYS // 192)  # of the kernels' rows
SECONDS = 3.0
_SPIN = 200_000_000  # clocks

Clocks = dict[str, float]  # per SM, of "forward d64" and so on


def steps(rows: int, keys: int, sms: int) -> float:
    """Steps of so many rows and keys that every SM takes in a call."""
    return KEYS / rows * heads_for(sms) / sms * KEYS / keys


def heads_for(sms: int) -> int:
    """Heads with which the tiles of one frame divide evenly among so many SMs, in every kernel."""
    return next(heads for heads in range(8, 8 + sms) if all(tiles * heads % sms == 0 for tiles in TILES))


def measured(device: torch.device) -> Clocks:
    """Clocks that each pass of the backend "cuda" takes on each SM; of the backward, both kernels together."""
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    watch, found = Stopwatch(device), Clocks()
    for head_dim in (64, 128):
        calls = calls_of(device, heads_for(sms), head_dim)
        times = interleave(calls, watch, SECONDS)
        rate = clock_rate(watch)  # right after them: what clocks are under load
        found |= {f"{name} d{head_dim}": median(samples) * rate for name, samples in times.items()}
    return found


def calls_of(device: torch.device, heads: int, head_dim: int) -> dict[str, Callable[[], object]]:
    layout = SifLayout.from_lengths([0], [[KEYS]])
    q, k, v = (
        torch.randn(KEYS, heads, head_dim, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    out = sif_attention(q, k, v, layout, backend="cuda")
    slope = torch.randn_like(out)

    def forward() -> object:
        with torch.no_grad():
            return sif_attention(q, k, v, layout, backend="cuda")

    def backward() -> object:
        return torch.autograd.grad(out, (q, k, v), slope, retain_graph=True)

    return {"forward": forward, "backward": backward}


def clock_rate(watch: Callable[[Callable[[], object]], float]) -> float:
    """Clocks per second of an SM, by a kernel that counts them."""
    return _SPIN / watch(lambda: torch.cuda._sleep(_SPIN))


def predicted(made: dict[str, Any], sms: int) -> Clocks:
    """The same clocks by the model."""
    clocks: Clocks = {}
    for row in made["kernels"]:
        if row["shipped"]:
            name = f"{'forward' if row['work'] == 'forward' else 'backward'} d{row['head_dim']}"
            clocks[name] = clocks.get(name, 0.0) + row["clocks"] * steps(64 * row["consumers"], row["keys"], sms)
    return clocks


def table(found: Clocks, made: dict[str, Any], sms: int) -> str:
    """Measured beside predicted, and their ratio; above 1, the kernel is slower than the model."""
    lines = ["| kernel | clocks measured | predicted | measured / predicted |", "|---|---:|---:|---:|"]
    for name, clocks in predicted(made, sms).items():
        lines.append(f"| {name} | {found[name]:.0f} | {clocks:.0f} | {found[name] / clocks:.2f} |")
    return "\n".join(lines)
