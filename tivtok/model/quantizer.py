"""Quantizers: SoftVQ, which is continuous (arXiv 2412.10958), and FSQ, whose tokens are integers (arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SoftVQ(nn.Module):
    """z -> softmax(z C^T / temperature) C with z and the codebook C on the unit sphere.

    No straight-through estimator and no commitment loss: the assignment is differentiable as it stands. The codebook
    learns as a factor of that product alone: the scores see it as a constant, as in the code of its authors.
    """

    def __init__(self, codebook_size: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        codes = F.normalize(self.codebook, dim=-1)
        return torch.softmax(self._scores(z) / self.temperature, dim=-1) @ codes

    def entropy_penalty(self, z: Tensor, temperature: float = 0.01) -> Tensor:
        """mean_i H(p_i) - H(mean_i p_i): low when each token is decided and the codebook is used evenly."""
        log_weights = torch.log_softmax(self._scores(z).flatten(0, -2) / temperature, dim=-1)
        weights = log_weights.exp()
        mean = weights.mean(0)
        per_token = -(weights * log_weights).sum(-1).mean()
        return per_token + (mean * mean.clamp_min(1e-12).log()).sum()

    def _scores(self, z: Tensor) -> Tensor:
        """Cosines of each token with each code, (..., K)."""
        return F.normalize(z, dim=-1) @ F.normalize(self.codebook, dim=-1).detach().T


class FSQ(nn.Module):
    """Finite scalar quantization: each channel is bounded by tanh and rounded, with gradients as if it were not.

    Channels take turns with ``levels``: channel c has ``levels[c % len(levels)]`` values, evenly spaced in [-1, 1].
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., D), computed in float32 at least."""
        x = z if z.dtype == torch.float64 else z.float()
        levels = _per_channel(self.levels, x)
        reach = (levels - 1) * (1 + 1e-3) / 2  # a little beyond the outermost values, so that tanh attains them
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(x)
        bounded = torch.tanh(x + torch.atanh(offset / reach)) * reach - offset
        half = levels.div(2, rounding_mode="floor")
        return ((bounded + (bounded.round() - bounded).detach()) / half).to(z)

    def snap(self, x: Tensor) -> Tensor:
        """The nearest quantised values to means of quantised values, with gradients as if nothing were done."""
        return x + (nearest(x, self.levels) - x).detach()


def nearest(x: Tensor, levels: Sequence[int]) -> Tensor:
    """The values of FSQ that are nearest to (..., D)."""
    half = _per_channel(levels, x).div(2, rounding_mode="floor")
    return ((_indices(x, levels) - half) / half).to(x)


def to_codes(x: Tensor, levels: Sequence[int]) -> Tensor:
    """Quantised values (..., D) -> one number for each ``len(levels)`` channels, int64 (..., D / len(levels))."""
    basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))], device=x.device)
    return (_indices(x, levels).long().unflatten(-1, (-1, len(levels))) * basis).sum(-1)


def from_codes(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """The inverse of `to_codes`, as float32.

    Raises:
        ValueError: a code is not in 0 to the product of the levels - 1.
    """
    count = math.prod(levels)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < count:
        raise ValueError(f"codes must be within 0..{count - 1}, got {int(codes.min())}..{int(codes.max())}")
    columns = []
    for number in levels:
        columns.append((codes % number - number // 2).float() / (number // 2))
        codes = codes // number
    return torch.stack(columns, dim=-1).flatten(-2)


def _indices(x: Tensor, levels: Sequence[int]) -> Tensor:
    """The number of the nearest value, from 0, of each channel; in the dtype of ``x``, float32 at least."""
    x = x if x.dtype == torch.float64 else x.float()
    channel_levels = _per_channel(levels, x)
    half = channel_levels.div(2, rounding_mode="floor")
    return torch.minimum((x * half + half).round().clamp_min(0), channel_levels - 1)


def _per_channel(levels: Sequence[int], x: Tensor) -> Tensor:
    """(D,): the levels of each channel, like ``x`` (..., D)."""
    return torch.tensor(levels, device=x.device, dtype=x.dtype).repeat(x.shape[-1] // len(levels))
