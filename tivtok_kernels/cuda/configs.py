"""Which kernels serve which call. Tiles and the reasons for them are in csrc/*/config.h; the extension reports them."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

from tivtok_kernels.problem import Direction, Problem

Engine = Literal["ampere", "hopper"]

MAX_HEAD_DIM = 128
HOPPER_HEAD_DIMS = (64, 128)

# (compute capability, head_dim, direction) where a measurement in docs/results has these kernels ahead of Triton's:
# there "auto" takes them. No GPU has run them yet.
FASTER_THAN_TRITON: frozenset[tuple[tuple[int, int], int, Direction]] = frozenset()


def wins(problem: Problem) -> bool:
    """Whether "auto" should try these kernels first."""
    if problem.device.type != "cuda" or problem.head_dim is None or not FASTER_THAN_TRITON:
        return False
    return (capability(problem.device), problem.head_dim, problem.direction) in FASTER_THAN_TRITON


def engine(device: torch.device, head_dim: int, *, has_hopper: bool) -> Engine:
    """The kernels for a head_dim, of both passes. The Ampere ones run on everything newer too.

    Args:
        has_hopper: the extension was built for sm_90a.
    """
    return "hopper" if has_hopper and capability(device) == (9, 0) and head_dim in HOPPER_HEAD_DIMS else "ampere"


@cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
