"""Who works on what: items (tile, head) shared out among the persistent blocks of the Hopper forward.

A share is a run of one list, so a block needs no counter that others touch, and the same call always runs the same way.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tivtok_kernels.schedule import WorkList, upload


class Shares(NamedTuple):
    """Attributes:

    order: int32 (tiles * heads): items, ``tile * heads + head``. Block i works on ``order[bounds[i] : bounds[i + 1]]``.
    bounds: int32 (blocks + 1).
    kept_pairs: key tiles in which an item leaves range A for the next one; 0 if all come through the ring.
    streams: as in `schedule.WorkList`.
    """

    order: Tensor
    bounds: Tensor
    kept_pairs: int
    streams: set[int]

    @property
    def memory(self) -> Tensor:
        return self.order


def by_length(work: WorkList, heads: int, blocks: int, step: int) -> Shares:
    """Longest first, each item to the block that has least to do.

    Args:
        step: keys per step.
    """
    cost = np.repeat(_steps(work, step), heads).tolist()
    loads = [(0, block) for block in range(blocks)]
    owner = np.empty(len(cost), dtype=np.int64)
    for item in range(len(cost)):
        load, owner[item] = loads[0]
        heapq.heapreplace(loads, (load + cost[item], int(owner[item])))
    return _upload(np.argsort(owner, kind="stable"), owner, blocks, 0, work.tiles.device)


def by_range_a(work: WorkList, heads: int, group: int, blocks: int, step: int, most_kept: int) -> Shares:
    """Runs of about equal numbers of steps in which range A and key head rarely change: for blocks that keep range A.

    Args:
        group: query heads per key head.
        step: keys per step.
        most_kept: key tiles that a block can keep; a longer range A is not kept.
    """
    _, _, a, a_end, _, b_end, _, _ = work.tiles.cpu().numpy().T
    tile, head = np.divmod(np.arange(work.num_tiles * heads), heads)
    # The last key is the first in rank; tiles of a frame stand together, and so share the tail of range B.
    order = np.lexsort((b_end[tile], head // group, a_end[tile], a[tile]))
    cost = _steps(work, step)[tile[order]]
    middle = np.cumsum(cost) - cost / 2
    owner = np.minimum(middle * blocks // cost.sum(), blocks - 1).astype(np.int64)
    tiles_of_a = -(-(a_end - a) // step)
    kept = int(tiles_of_a.max(initial=0, where=tiles_of_a <= most_kept))
    return _upload(order, owner, blocks, kept, work.tiles.device)


def _steps(work: WorkList, step: int) -> np.ndarray:
    """Of each tile."""
    _, _, a, a_end, b, b_end, _, _ = work.tiles.cpu().numpy().T
    return -(-(a_end - a + b_end - b) // step)


def _upload(order: np.ndarray, owner: np.ndarray, blocks: int, kept_pairs: int, device: torch.device) -> Shares:
    """order: items, those of block 0 first. owner: the blocks, once per item in any order."""
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=blocks))])
    both = upload(np.concatenate([order, bounds]).astype(np.int32), device)
    return Shares(both[: len(order)], both[len(order) :], kept_pairs, set())
