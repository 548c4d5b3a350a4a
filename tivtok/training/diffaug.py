"""DiffAug (arXiv 2006.10738): differentiable augmentation of what a discriminator sees, alike for a clip's frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Uniform random numbers that one clip takes.
NUM_DRAWS = 10

MAX_SHIFT = 1 / 8  # of height and width
STRONG_CUTOUT = 0.5


def augment(video: Tensor, draws: Tensor, probability: float, cutout: float = STRONG_CUTOUT) -> Tensor:
    """Colour, translation and cutout, each applied to a clip with ``probability``.

    Args:
        video: (B, 3, F, H, W) in [-1, 1].
        draws: (B, NUM_DRAWS) in [0, 1): the first three decide on the policies, the rest are their amounts.
        cutout: height and width of the hole, as a share of the frame's.
    """
    draws = draws.to(video.device, torch.float32)
    on = draws[:, :3] < probability
    video = torch.where(_per_clip(on[:, 0]), _colour(video, draws[:, 3:6]), video)
    video = torch.where(_per_clip(on[:, 1]), _translate(video, draws[:, 6:8]), video)
    return torch.where(_per_clip(on[:, 2]), _cut_out(video, draws[:, 8:10], cutout), video)


def _colour(video: Tensor, amounts: Tensor) -> Tensor:
    """Brightness within +-0.5, saturation times up to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = (_per_clip(x) for x in amounts.unbind(1))
    video = video + (brightness - 0.5)
    grey = video.mean(dim=1, keepdim=True)
    video = grey + (video - grey) * (2 * saturation)
    mean = video.mean(dim=(1, 2, 3, 4), keepdim=True)
    return mean + (video - mean) * (contrast + 0.5)


def _translate(video: Tensor, amounts: Tensor) -> Tensor:
    """Shift by up to `MAX_SHIFT` of the size; what comes in is zero."""
    height, width = video.shape[3:]
    moved = []
    for clip, (down, across) in zip(video, (2 * amounts - 1).tolist(), strict=True):
        dy, dx = round(down * MAX_SHIFT * height), round(across * MAX_SHIFT * width)
        moved.append(F.pad(clip, (dx, -dx, dy, -dy)))
    return torch.stack(moved)


def _cut_out(video: Tensor, amounts: Tensor, share: float) -> Tensor:
    """Zero a rectangle of ``share`` times the size, anywhere."""
    inside = []
    for axis, size in enumerate(video.shape[3:]):
        places = torch.arange(size, device=video.device) + 0.5
        inside.append((places - amounts[:, axis, None] * size).abs() < share * size / 2)
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return video * ~hole[:, None, None]


def _per_clip(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1, 1)
