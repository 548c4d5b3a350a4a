"""The divided cosine code: exact where it has a number for everything, and shared sets lose what changes cannot say."""

from __future__ import annotations

import torch

from benchmarks.cards.divided_dct import DividedDct
from tivtok.model.config import TivTokConfig

CONFIG = TivTokConfig(num_tiv=8, num_tv=4, latent_dim=16, patch=(2, 4, 4), groups_per_chunk=2, native_size=(8, 8))
EVERYTHING = CONFIG.replace(num_tiv=12, num_tv=24)  # 3 x 8 x 8 numbers, and twice as many for groups of two frames


def noise(frames: int) -> torch.Tensor:
    return torch.rand(2, 3, frames, 8, 8, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean())


def test_a_number_for_everything_is_lossless() -> None:
    video = noise(8)
    for sets in (1, 2):
        torch.testing.assert_close(DividedDct(EVERYTHING)(video, sets), video)


def test_changes_follow_the_set_that_is_shared() -> None:
    """Two chunks of one colour each: what the mean took away, numbers of frame groups say, unless they stay."""
    video = torch.cat([torch.full((1, 3, 4, 8, 8), level) for level in (-0.5, 0.5)], dim=2)
    torch.testing.assert_close(DividedDct(CONFIG)(video, 1), video)
    torch.testing.assert_close(DividedDct(CONFIG, follows=False)(video, 1), torch.zeros_like(video), atol=1e-6, rtol=0)
    torch.testing.assert_close(DividedDct(CONFIG, follows=False)(video, 2), video)


def test_more_numbers_show_more() -> None:
    video = noise(8)
    few, some = (error(DividedDct(CONFIG.replace(num_tiv=n))(video, 1), video) for n in (4, 8))
    assert some < few
    assert error(DividedDct(CONFIG)(video, 2), video) < error(DividedDct(CONFIG)(video, 1), video)
