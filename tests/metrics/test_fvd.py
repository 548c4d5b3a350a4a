"""The Fréchet distance against closed forms; FVD of a set with itself, and of a set with ever more noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tivtok.metrics.fvd import FeatureStatistics, frechet_distance, fvd
from tivtok.metrics.i3d import load_i3d
from tivtok.video import VideoReader, fit, frames_to_video

CLIP = Path(__file__).parents[2] / "tivtok" / "assets" / "bikes.mp4"


def random_covariance(size: int, rank: int, seed: int) -> torch.Tensor:
    x = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.T


def test_distance_of_one_dimension_and_of_diagonals() -> None:
    """(mean difference)^2 + (difference of standard deviations)^2, in each dimension."""
    mean_a, mean_b = torch.tensor([1.0, -2.0]).double(), torch.tensor([4.0, 2.0]).double()
    deviations_a, deviations_b = torch.tensor([2.0, 0.5]).double(), torch.tensor([3.0, 0.0]).double()
    got = frechet_distance(mean_a, torch.diag(deviations_a**2), mean_b, torch.diag(deviations_b**2))
    assert got == pytest.approx(9 + 16 + 1 + 0.25, rel=1e-12)


@pytest.mark.parametrize("rank", [12, 5])
def test_distance_equals_the_product_form(rank: int) -> None:
    """tr((A B)^(1/2)) by the eigenvalues of A B itself, of matrices that do not commute; singular ones, too."""
    a, b = random_covariance(12, rank, seed=0), random_covariance(12, rank, seed=1)
    root = torch.linalg.eigvals(a @ b).real.clamp_min(0).sqrt().sum()
    zero = torch.zeros(12, dtype=torch.float64)
    expected = float(a.trace() + b.trace() - 2 * root)
    assert frechet_distance(zero, a, zero, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(zero, b, zero, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(zero, a, zero, a) < 1e-6 * float(a.trace())


@pytest.mark.parametrize("divisor", ["N", "N-1"])
def test_streamed_statistics_equal_those_of_all_at_once(divisor) -> None:
    """Far from zero, where sums of squares would cancel."""
    features = 1e6 + torch.randn(23, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = FeatureStatistics()
    for batch in features.split([4, 1, 10, 8]):
        statistics.add(batch)
    assert statistics.count == 23
    torch.testing.assert_close(statistics.mean, features.mean(0))
    expected = torch.cov(features.T, correction=0 if divisor == "N" else 1)
    torch.testing.assert_close(statistics.covariance(divisor), expected, rtol=1e-9, atol=1e-9)


def test_wrong_features_are_named() -> None:
    statistics = FeatureStatistics()
    with pytest.raises(ValueError, match="there are no features yet"):
        statistics.mean  # noqa: B018
    with pytest.raises(ValueError, match=r"features must be \(B, D\) with B >= 1, got \(3,\)"):
        statistics.add(torch.zeros(3))
    with pytest.raises(ValueError, match="features must be finite"):
        statistics.add(torch.tensor([[1.0, float("nan")]]))
    statistics.add(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least 2 feature vectors, got 1"):
        statistics.covariance("N")


def distances_by_noise(features: Callable[[torch.Tensor], torch.Tensor], clips: torch.Tensor) -> list[float]:
    """FVD of clips with themselves, and with themselves plus a little and much noise."""
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    originals = FeatureStatistics()
    originals.add(features(clips))
    distances = [fvd(originals, originals, "N-1")]
    for amount in (0.1, 0.9):
        noisy = FeatureStatistics()
        noisy.add(features((clips + amount * noise).clamp(-1, 1)))
        distances.append(fvd(originals, noisy, "N-1"))
    return distances


def bundled_clips(count: int) -> torch.Tensor:
    """(count, 3, 9, 16, 16): parts of the bundled clip."""
    frames = fit(next(VideoReader(CLIP).chunks(9 * count)), 16, 16)
    return torch.stack([frames_to_video(part) for part in frames.split(9)])


def test_fvd_grows_with_noise() -> None:
    """With random features on small clips; resizing to 224 is left out for time, which `load_i3d` has."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(3, 20, 3, stride=2)
    self_distance, *others = distances_by_noise(lambda x: network(x).relu().mean((2, 3, 4)).detach(), bundled_clips(5))
    assert self_distance < 1e-6 * others[0]
    assert others == sorted(others) and others[-1] > 4 * others[0] > 0


def test_fvd_with_the_real_network(real_weights: Callable[[str], Path]) -> None:
    self_distance, *others = distances_by_noise(load_i3d(real_weights("i3d")), bundled_clips(2))
    assert self_distance < 1e-3
    assert others == sorted(others) and others[0] > 1
