"""What a backend is told about a call before it is asked to run it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Problem(NamedTuple):
    """The facts that backend predicates decide on. None: not known yet, so not a reason to refuse."""

    device: torch.device
    dtype: torch.dtype | None = None
    head_dim: int | None = None
    deterministic: bool = False
