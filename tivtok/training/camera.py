"""A camera that looks at a clip from elsewhere and moves: more views, and more motion, of few videos."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLOSEST = 0.5  # a view's side over the largest upright one's
LARGEST_ANGLE = math.pi / 4
# Every movement has this probability, and a speed with these standard deviations over half a clip.
MOVING = 0.5
ZOOM, TURN, PAN = 0.1, 0.03, 0.075  # of a natural logarithm, radians, the view's largest side


def film(clip: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Look at ``clip`` (3, F, H, W) through a camera that is turned and may zoom, turn and pan: (3, F, *size).

    What lies beyond the borders is mirrored.
    """
    frames, *extent = clip.shape[1:]
    time = torch.linspace(-1, 1, frames) if frames > 1 else torch.zeros(1)

    def moving(start: float, spread: float) -> Tensor:
        speed = rng.normal(0, spread) if rng.random() < MOVING else 0.0
        return start + speed * time

    largest = min(have / want for have, want in zip(extent, size, strict=True))
    closeness = rng.uniform(math.log(CLOSEST), 0)
    scale = largest * moving(closeness, ZOOM).exp()  # pixels of the clip per pixel of the view
    angle = moving(rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE), TURN)
    room = [have - want * largest * math.exp(closeness) for have, want in zip(extent, size, strict=True)]
    centre = [moving(rng.uniform(-0.5, 0.5) * free, PAN * largest * max(size)) for free in room]

    y, x = (torch.arange(n) + 0.5 - n / 2 for n in size)
    turned = (angle.cos() * scale)[:, None, None], (angle.sin() * scale)[:, None, None]
    down = turned[0] * y[:, None] + turned[1] * x + centre[0][:, None, None]
    across = turned[0] * x - turned[1] * y[:, None] + centre[1][:, None, None]
    grid = torch.stack([2 * across / extent[1], 2 * down / extent[0]], dim=-1).float()
    seen = F.grid_sample(clip.transpose(0, 1), grid, padding_mode="reflection", align_corners=False)
    return seen.transpose(0, 1)
