"""What a tokenizer has to beat: resampling."""

import pytest
import torch

from benchmarks.cards.baseline import best_resampling


def test_resampling_keeps_what_is_smooth_and_finds_the_better_grid():
    still = torch.nn.functional.interpolate(
        torch.rand(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), size=(8, 16, 16), mode="trilinear"
    )
    size, reconstruction = best_resampling(still, num_values=3 * 8 * 8)
    assert size == (1, 8, 8)
    assert (reconstruction - still).square().mean() < 0.1 * still.var()
    with pytest.raises(ValueError, match="num_values"):
        best_resampling(still, num_values=2)
