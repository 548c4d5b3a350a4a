"""The camera that looks at training clips from elsewhere."""

import numpy as np
import pytest
import torch

from tivtok.training.camera import CLOSEST, LARGEST_ANGLE, TURN, ZOOM, film

SIZE = (32, 48)


def ramps(frames: int = 5, height: int = 96, width: int = 160) -> torch.Tensor:
    """Channels: how far down, how far across, and 1; in pixels of the clip from its middle."""
    down = (torch.arange(height) + 0.5 - height / 2)[:, None].expand(height, width)
    across = (torch.arange(width) + 0.5 - width / 2).expand(height, width)
    return torch.stack([down, across, torch.ones(height, width)])[:, None].expand(3, frames, -1, -1)


@pytest.mark.parametrize("seed", range(20))
def test_a_view_is_turned_and_scaled_alike_everywhere_and_changes_evenly(seed: int) -> None:
    seen = film(ramps(), SIZE, np.random.default_rng(seed))
    assert seen.shape == (3, 5, *SIZE)
    torch.testing.assert_close(seen[2], torch.ones_like(seen[2]))
    middle = seen[:2, :, 14:18, 22:26]  # away from the borders, where the clip is mirrored
    right, below = middle.diff(dim=3)[..., :3, :], middle.diff(dim=2)[..., :3]
    torch.testing.assert_close(right, right[..., :1, :1].expand_as(right), atol=1e-3, rtol=0)
    torch.testing.assert_close(below, below[..., :1, :1].expand_as(below), atol=1e-3, rtol=0)
    step, its = right[..., 0, 0], below[..., 0, 0]  # (down and across, frames)
    torch.testing.assert_close(torch.stack([its[1], -its[0]]), -step, atol=1e-3, rtol=0)  # a right angle, no mirror
    scale, angle = step.norm(dim=0), torch.atan2(-step[0], step[1]).abs()
    largest = min(96 / 32, 160 / 48)
    assert ((scale > largest * CLOSEST * np.exp(-6 * ZOOM)) & (scale < largest * np.exp(6 * ZOOM))).all()
    assert (angle < LARGEST_ANGLE + 6 * TURN).all()
    torch.testing.assert_close(scale.log().diff(), scale.log().diff()[:1].expand(4), atol=1e-3, rtol=0)


def test_half_of_the_cameras_do_not_move_in_some_way_and_none_of_the_views_is_alike() -> None:
    views = [film(ramps(), SIZE, np.random.default_rng(seed))[:2] for seed in range(60)]
    still = sum(torch.allclose(view, view[:, :1], atol=1e-3) for view in views)
    assert 0 < still < 20  # a sixteenth: neither zoom nor turn nor either pan
    assert len({round(float(view.sum()), 2) for view in views}) == len(views)


def test_one_frame_is_seen_as_well() -> None:
    assert film(ramps(frames=1), SIZE, np.random.default_rng(0)).shape == (3, 1, *SIZE)
