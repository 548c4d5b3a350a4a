"""Who works on what: items (tile, head) shared out among the persistent blocks of the Hopper forward.

A share is a run of one list, so a block needs no counter that others touch, and the same call always runs the same way.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tivtok_kernels.schedule import WorkList, upload


class Shares(NamedTuple):
    """Attributes:

    order: int32 (tiles * heads): items, ``tile * heads + head``. Block i works on ``order[bounds[i] : bounds[i + 1]]``.
    bounds: int32 (blocks + 1).
    streams: as in `schedule.WorkList`.
    """

    order: Tensor
    bounds: Tensor
    streams: set[int]

    @property
    def memory(self) -> Tensor:
        return self.order


def by_length(work: WorkList, heads: int, blocks: int, step: int) -> Shares:
    """Longest first, each item to the block that has least to do.

    Args:
        step: keys per step.
    """
    _, _, a, a_end, b, b_end, _, _ = work.tiles.cpu().numpy().T
    cost = np.repeat(-(-(a_end - a + b_end - b) // step), heads).tolist()
    loads = [(0, block) for block in range(blocks)]
    owner = np.empty(len(cost), dtype=np.int64)
    for item in range(len(cost)):
        load, owner[item] = loads[0]
        heapq.heapreplace(loads, (load + cost[item], int(owner[item])))
    order = np.argsort(owner, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=blocks))])
    both = upload(np.concatenate([order, bounds]).astype(np.int32), work.tiles.device)
    return Shares(both[: len(order)], both[len(order) :], set())
