"""Who works on what: items (tile, head) shared out among the blocks of the persistent Hopper kernels.

A share is a run of one list, so a block needs no counter that others touch, and the same call always runs the same way.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tivtok_kernels.schedule import WorkList, upload

QUERY_PRODUCTS, KEY_PRODUCTS = 3, 4  # of a row owned and a row walked


class Shares(NamedTuple):
    """Attributes:

    order: int32 (items): their numbers, as in `by_length`. Block i works on ``order[bounds[i] : bounds[i + 1]]``.
    bounds: int32 (blocks + 1).
    streams: as in `schedule.WorkList`.
    """

    order: Tensor
    bounds: Tensor
    streams: set[int]

    @property
    def memory(self) -> Tensor:
        return self.order

    @property
    def blocks(self) -> int:
        return len(self.bounds) - 1


class Items(NamedTuple):
    """What a kernel is to do: each tile of a list, for each head.

    Attributes:
        step: rows of the other side per step.
        cost: of a step, in any unit that all items of a kernel have in common.
    """

    work: WorkList
    heads: int
    step: int
    cost: int = 1

    def costs(self) -> np.ndarray:
        """Costs by item, ``tile * heads + head``."""
        _, _, a, a_end, b, b_end, _, _ = self.work.tiles.cpu().numpy().T
        return np.repeat(-(-(a_end - a + b_end - b) // self.step) * self.cost, self.heads)


def gradient_items(queries: WorkList, keys: WorkList, heads: int, group: int, walked: tuple[int, int]) -> list[Items]:
    """List all of a backward: dQ by tiles of queries, dK and dV by tiles of keys.

    A step takes as long as its products.

    Args:
        heads, group: query heads, and how many of them a key head has.
        walked: keys and queries per step.
    """
    return [
        Items(queries, heads, walked[0], QUERY_PRODUCTS * walked[0]),
        Items(keys, heads // group, walked[1], KEY_PRODUCTS * walked[1] * group),
    ]


def by_length(parts: Sequence[Items], processors: int, device: torch.device) -> Shares:
    """Longest first, each item to the block that has least to do.

    Args:
        parts: of the kernel. Items are numbered through, those of the second behind those of the first.
        processors: blocks, if there are as many items.
    """
    costs = np.concatenate([part.costs() for part in parts])
    blocks = min(processors, len(costs))
    loads = [(0, block) for block in range(blocks)]
    owner = np.empty(len(costs), dtype=np.int64)
    longest_first = np.argsort(-costs, kind="stable")
    for item, cost in zip(longest_first.tolist(), costs[longest_first].tolist(), strict=True):
        load, owner[item] = loads[0]
        heapq.heapreplace(loads, (load + cost, int(owner[item])))
    order = longest_first[np.argsort(owner[longest_first], kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=blocks))])
    both = upload(np.concatenate([order, bounds]).astype(np.int32), device)
    return Shares(both[: len(order)], both[len(order) :], set())
