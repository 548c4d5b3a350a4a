"""Which kernels serve which call. Tiles and the reasons for them are in csrc/*/config.h; the extension reports them."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

Engine = Literal["ampere", "hopper"]

MAX_HEAD_DIM = 128
HOPPER_HEAD_DIMS = (64, 128)


def engine(device: torch.device, head_dim: int, *, has_hopper: bool) -> Engine:
    """The kernels for a head_dim, of both passes. The Ampere ones run on everything newer too.

    Args:
        has_hopper: the extension was built for sm_90a.
    """
    return "hopper" if has_hopper and capability(device) == (9, 0) and head_dim in HOPPER_HEAD_DIMS else "ampere"


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for "80" runs on such a device: the same major version, no older; "90a" on 9.0 alone."""
    major, minor = int(architecture.rstrip("af")[:-1]), int(architecture.rstrip("af")[-1])
    return major == capability[0] and (minor == capability[1] if architecture[-1] == "a" else minor <= capability[1])


@cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
