"""Fréchet video distance (Unterthiner et al. 2018, arXiv 1812.01717): two sets of videos as Gaussians of features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Covariance = Literal["N", "N-1"]


class FeatureStatistics:
    """Mean and covariance of features that come in batches; memory is that of one covariance matrix.

    Sums are centred on the first batch's mean, so that features far from zero lose no digits to cancellation.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin: Tensor | None = None
        self._sum: Tensor
        self._products: Tensor

    def add(self, features: Tensor) -> None:
        """features (B, D).

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features must be (B, D) with B >= 1, got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features must be finite, got NaN or infinity")
        x = features.detach().double().cpu()
        if self._origin is None:
            self._origin = x.mean(0)
            self._sum = torch.zeros_like(self._origin)
            self._products = x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._origin
        self.count += len(x)
        self._sum += x.sum(0)
        self._products += x.T @ x

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self._known() + self._sum / self.count

    def covariance(self, divisor: Covariance) -> Tensor:
        """(D, D) float64, over the number of features, N, or N - 1.

        Raises:
            ValueError: there are fewer than two features.
        """
        self._known()
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        centred = self._products - torch.outer(self._sum, self._sum) / self.count
        return centred / (self.count if divisor == "N" else self.count - 1)

    def _known(self) -> Tensor:
        if self._origin is None:
            raise ValueError("there are no features yet")
        return self._origin


def fvd(a: FeatureStatistics, b: FeatureStatistics, divisor: Covariance) -> float:
    """The Fréchet distance of two sets' features."""
    return frechet_distance(a.mean, a.covariance(divisor), b.mean, b.covariance(divisor))


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians (Dowson & Landau 1982).

    (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: eigenvalues, no complex square root, and
    singular matrices (fewer videos than features) are as good as others.

    Args:
        mean_a, mean_b: (D,) float64.
        covariance_a, covariance_b: (D, D) float64, symmetric and positive semidefinite.
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(0.0, float(distance))
