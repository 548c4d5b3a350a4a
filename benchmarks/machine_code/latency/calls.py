"""Times of whole calls by the model: the schedule's lists, and what a step of each kernel is predicted to take.

A prediction upon predictions: what a main loop does not have is a guess here, and nothing else runs on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.attention.cases import preset_layout
from benchmarks.machine_code.latency import backward
from benchmarks.machine_code.latency.figures import FIGURES
from benchmarks.machine_code.pipes import SMS
from tivtok_kernels import SifLayout
from tivtok_kernels.cuda.shares import Items
from tivtok_kernels.schedule import WorkList, key_work, query_work

# Of a bfloat16 matmul on an H100 SXM, the largest of a search over shapes (2048 x 2048 x 13312, torch 2.7.0):
# "Maximum Achievable Matmul FLOPS comparison table", compute/accelerator/README.md of github.com/stas00/ml-engineering
# at 744d01e.
MATMUL = 794.5e12
CLOCKS = MATMUL / (FIGURES["tensor"].value * SMS)  # per second of an SM, so that tensor cores have that rate
BYTES = 3.35e12  # per second of its memory, by its data sheet
OUTSIDE = 0.6  # steps, assumed: the start and the end of an item
LAUNCH = 2e-6  # seconds, assumed: of each kernel

Call = Literal["forward", "backward"]

# The kernels of a call that walk over tiles; those of one launch share its blocks.
LAUNCHES: dict[Call, tuple[tuple[str, ...], ...]] = {"forward": (("forward",),), "backward": (("dq", "dkdv"),)}
PRODUCTS: dict[Call, int] = {"forward": 2, "backward": 5}  # that FLOPs are counted of, ours and theirs

# TFLOP/s of FlashAttention-3 on an H100 SXM5 in 16 bits with 1k and 4k keys, without a mask, of 16k tokens and width
# 2048 (arXiv 2407.08608, its figures of forward and backward speed).
PUBLISHED: dict[tuple[Call, int], tuple[int, int]] = {
    ("forward", 64): (392, 476),
    ("forward", 128): (565, 638),
    ("backward", 64): (363, 453),
    ("backward", 128): (424, 542),
}
PRESETS, BATCHES = ("t128", "t512", "t1024"), (1, 8, 64)


def seconds(made: dict[str, Any], call: Call, layout: SifLayout, heads: int, head_dim: int) -> float:
    """Time of a call with the encoder's scope.

    Args:
        made: as in docs/results/latency.json.gz.
    """
    kernels = {row["work"]: row for row in made["kernels"] if row["shipped"] and row["head_dim"] == head_dim}
    memory, launches, time = 0.0, 0, 0.0
    for names in LAUNCHES[call]:
        costs = []
        for row in map(kernels.__getitem__, names):
            block, step = 64 * row["consumers"], row["keys"]
            work = _work(row["work"], layout, block, step, heads)
            costs.append((Items(work, heads, step).costs() + OUTSIDE) * row["clocks"])
            # Partial results are written and read, in float32: of dK and dV two.
            memory += work.num_slots * block * heads * head_dim * 4 * 2 * (1 + (row["work"] == "dkdv"))
            launches += bool(work.num_merges)
        time += makespan(np.concatenate(costs)) / CLOCKS
        launches += 1
    if call == "backward":  # the row statistics, from out and dout
        memory += 2 * layout.total_tokens * heads * head_dim * 2
        launches += 1
    return time + memory / BYTES + launches * LAUNCH


def _work(kernel: str, layout: SifLayout, block: int, step: int, heads: int) -> WorkList:
    """The list of a kernel, as `tivtok_kernels.cuda` makes it."""
    device = torch.device("cpu")
    if kernel == "dkdv":
        return key_work(layout, "clip", block, step, heads, SMS, device)
    return query_work(layout, "clip", block, step, heads, SMS, device, fill=kernel == "forward")


def makespan(costs: np.ndarray) -> float:
    """Time at which the last SM is free, the longest items first."""
    return backward.makespan(np.sort(costs)[::-1].tolist())


def table(made: dict[str, Any]) -> str:
    """TFLOP/s by pass, head_dim, preset and clips, and what shares of FlashAttention-3's published rates that is."""
    lines = [f"| call | preset | {' | '.join(f'{count} x 16 frames' for count in BATCHES)} |"]
    lines.append("|---|---|" + "---|" * len(BATCHES))
    for call, head_dim in PUBLISHED:
        for preset in PRESETS:
            lines.append(
                f"| {call} d{head_dim} | {preset.upper()} | {' | '.join(_cells(made, call, head_dim, preset))} |"
            )
    return "\n".join(lines)


def _cells(made: dict[str, Any], call: Call, head_dim: int, preset: str) -> Iterator[str]:
    heads = backward.WIDTH // head_dim
    for clips in BATCHES:
        layout = preset_layout(preset, 16, clips)
        flops = 2 * PRODUCTS[call] * layout.area() * backward.WIDTH
        rate = flops / seconds(made, call, layout, heads, head_dim) / 1e12
        yield f"{rate:.0f} ({' / '.join(f'{rate / theirs:.2f}' for theirs in PUBLISHED[call, head_dim])})"
