"""Whole calls of the Hopper backward by the latency model's clocks per step: what it is worth that one launch makes all
gradients, and that blocks load an item's first rows while they multiply the one before.

A block is its loads, one after the other at the rate of L2, each when its place is free, and its steps, each when its
rows are there. That is all: no stores, no launches, no contention; an SM begins its next block at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.attention.cases import preset_layout
from benchmarks.machine_code.latency.figures import machine
from benchmarks.machine_code.latency.kernels import PLACES, VARIANTS, WALKED
from benchmarks.machine_code.pipes import SMS
from tivtok_kernels.cuda.shares import Items, by_length, gradient_items
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.schedule import key_work, query_work

PRESETS, FRAMES, CLIPS = ("t128", "t512"), 16, (1, 2, 8)
SCOPES: tuple[Scope, ...] = ("clip", "tiv", "broadcast")
WIDTH = 768  # heads times head_dim

OWNED = 128  # rows of an item
STAGES = next(variant.stages for variant in VARIANTS if variant.shipped and variant.work == "dkdv")
# When in an item's last step the matrices owned are no longer read: assumed, from the order of its products.
FREED = (0.5, 0.75)


class Pass(NamedTuple):
    """An item's step: clocks, by the model; bytes; whether matrices owned go to registers at once."""

    clocks: float
    bytes: int
    owned_bytes: int  # of one matrix
    in_registers: bool


Todo = tuple[tuple[int, Pass], ...]  # steps of each item of a block


class Times(NamedTuple):
    """Clocks of a call: two launches with a block per item, one such launch, one with persistent blocks."""

    launches: float
    grid: float
    persistent: float


class Row(NamedTuple):
    """``grid``, ``persistent``: the least and the most that such a call takes of the time of two launches, over
    presets and scopes."""

    head_dim: int
    clips: int
    grid: tuple[float, float]
    persistent: tuple[float, float]


def rows(kernels: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Compare calls on clips of 16 video frames.

    Args:
        kernels: predictions, of which those of the shipped gradient kernel count.
    """
    clocks = {(row["work"], row["head_dim"]): row["clocks"] for row in kernels if row["shipped"]}
    found = []
    for head_dim, clips in product(WALKED, CLIPS):
        own = clocks["dq", head_dim], clocks["dkdv", head_dim]
        times = [
            backward(preset_layout(preset, FRAMES, clips), scope, WIDTH // head_dim, head_dim, own)
            for preset, scope in product(PRESETS, SCOPES)
        ]
        grid = [t.grid / t.launches for t in times]
        persistent = [t.persistent / t.launches for t in times]
        found.append(Row(head_dim, clips, (min(grid), max(grid)), (min(persistent), max(persistent))))
    return found


def backward(layout: SifLayout, scope: Scope, heads: int, head_dim: int, clocks: tuple[float, float]) -> Times:
    """Time three ways to run a backward with as many key heads as query heads.

    Args:
        clocks: per step, of dQ and of dK and dV.
    """
    walked, cpu = (WALKED[head_dim]["dq"], WALKED[head_dim]["dkdv"]), torch.device("cpu")
    queries = query_work(layout, scope, OWNED, walked[0], heads, SMS, cpu)
    keys = key_work(layout, scope, OWNED, walked[1], heads, SMS, cpu)
    both = gradient_items(queries, keys, heads, 1, walked)
    passes = [
        Pass(of_step, 4 * step * head_dim, 2 * OWNED * head_dim, head_dim == 64 and step == 64)
        for of_step, step in zip(clocks, walked, strict=True)
    ]
    items = [[(int(steps), of) for steps in _steps(part)] for part, of in zip(both, passes, strict=True)]
    places = PLACES[head_dim]
    alone = [[block_clocks((item,), places) for item in own] for own in items]
    longest_first = np.argsort(-np.concatenate([part.costs() for part in both]), kind="stable")
    numbered, times = items[0] + items[1], alone[0] + alone[1]
    shares = by_length(both, SMS, cpu)
    order, bounds = shares.order.tolist(), shares.bounds.tolist()
    blocks = [tuple(numbered[i] for i in order[a:b]) for a, b in pairwise(bounds)]
    return Times(
        sum(map(makespan, alone)),
        makespan(times[i] for i in longest_first),
        max(block_clocks(block, places) for block in blocks),
    )


def _steps(part: Items) -> Iterator[int]:
    yield from (part.costs() // part.cost).tolist()


def makespan(times: Iterable[float]) -> float:
    """Time at which the last SM is free: blocks in the order of a list, each to the SM that is free first."""
    free = [0.0] * SMS
    for clocks in times:
        heapq.heapreplace(free, free[0] + clocks)
    return max(free)


@lru_cache(maxsize=100_000)
def block_clocks(items: Todo, places: int) -> float:
    """Clocks of a block that works on some items: csrc/backward/hopper/kernel.h, with ``places`` for matrices owned."""
    figures = machine()
    loader, now = 0.0, 0.0
    matrix_free, stage_free = [0.0] * places, [0.0] * STAGES  # of those last used, in order

    def load(free: Sequence[float], size: int) -> float:
        nonlocal loader
        loader = max(loader, free[0]) + size / figures["l2"]
        return loader + figures["l2_latency"]

    for steps, of in items:
        if steps == 0:
            continue
        first = load(matrix_free, of.owned_bytes)
        landed = load(stage_free, of.bytes)
        second = load(matrix_free[1:], of.owned_bytes)
        began = now = max(now, first, second)
        for step in range(steps):
            if step > 0:
                landed = load(stage_free, of.bytes)
            began = max(now, landed)
            now = began + of.clocks
            stage_free = [*stage_free[1:], now]
            if step == 0 and of.in_registers:
                matrix_free = [*matrix_free[2:], began, began]
        if not of.in_registers:
            matrix_free = [*matrix_free[2:], *(began + part * of.clocks for part in FREED)]
    return now
