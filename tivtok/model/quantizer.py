"""SoftVQ: continuous soft assignment to a codebook (SoftVQ-VAE, arXiv 2412.10958)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SoftVQ(nn.Module):
    """z -> softmax(z C^T / temperature) C with z and the codebook C on the unit sphere.

    No straight-through estimator and no commitment loss: the assignment is differentiable as it stands.
    """

    def __init__(self, codebook_size: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        codes = F.normalize(self.codebook, dim=-1)
        weights = torch.softmax(F.normalize(z, dim=-1) @ codes.T / self.temperature, dim=-1)
        return weights @ codes

    def entropy_penalty(self, z: Tensor, temperature: float = 0.01) -> Tensor:
        """mean_i H(p_i) - H(mean_i p_i): low when each token is decided and the codebook is used evenly."""
        codes = F.normalize(self.codebook, dim=-1)
        scores = F.normalize(z, dim=-1).flatten(0, -2) @ codes.T / temperature
        log_weights = torch.log_softmax(scores, dim=-1)
        weights = log_weights.exp()
        mean = weights.mean(0)
        per_token = -(weights * log_weights).sum(-1).mean()
        return per_token + (mean * mean.clamp_min(1e-12).log()).sum()
