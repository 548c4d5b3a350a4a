"""Query and key preparation in plain torch: differentiable forwards and to any order, transparent to torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from tivtok_kernels.problem import Problem
from tivtok_kernels.tensors import accumulation_dtype


def why_not(problem: Problem) -> str | None:
    """Runs wherever torch runs."""
    return None


def prepare_qk(
    qk: Tensor, rotary: tuple[Tensor, Tensor] | None, norm: tuple[Tensor, Tensor] | None, eps: float
) -> tuple[Tensor, ...]:
    """qk (..., rows, 2, H, D) -> q, k (..., rows, H, D), rounded once, at the end."""
    x = qk.to(accumulation_dtype(qk.dtype))
    if norm is not None:
        weights = torch.stack([weight.to(x.dtype) for weight in norm])[:, None]  # (2, 1, D)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weights
    if rotary is not None:
        cos, sin = (table.detach()[:, None, None].to(x.dtype) for table in rotary)  # (rows, 1, 1, D / 2)
        a, b = x.chunk(2, dim=-1)
        x = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return x.to(qk.dtype).unbind(-3)
