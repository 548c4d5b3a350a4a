"""Moving pieces of other clips, laid over one: many scenes out of few videos.

The sizes of the pieces are those of the "dead leaves" model of natural images (Lee, Mumford and Huang, IJCV 2001): a
density of radius^-3, so that a scene looks the same from near and from far.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# The most pieces over a clip; every number up to it has the same probability.
MAX_PIECES = 8

SMALLEST, LARGEST = 0.08, 0.6  # radius over the clip's shorter side
SPEED = 0.5  # standard deviation, pixels per frame


def lay_over(clip: Tensor, piece: Tensor, rng: np.random.Generator) -> Tensor:
    """Lay the part of ``piece`` inside an ellipse or a rectangle over ``clip``, both (3, F, H, W)."""
    frames, *size = clip.shape[1:]
    least = (SMALLEST / LARGEST) ** 2
    radius = min(size) * SMALLEST * rng.uniform(least, 1) ** -0.5
    radii = radius, radius * rng.uniform(0.4, 1)
    power = 2 if rng.random() < 0.5 else 8
    angle = rng.uniform(0, np.pi)
    speeds = rng.normal(0, SPEED, 2) * (rng.random() < 0.5)

    time = torch.arange(frames) - rng.uniform(0, frames)
    y, x = (
        torch.arange(n).add(0.5 - rng.uniform(0, n)) - time[:, None] * speed
        for n, speed in zip(size, speeds, strict=True)
    )  # (F, H), (F, W)
    y, x = y[:, :, None], x[:, None, :]
    along = (np.cos(angle) * x + np.sin(angle) * y) / radii[0]
    across = (np.cos(angle) * y - np.sin(angle) * x) / radii[1]
    distance = (along.abs() ** power + across.abs() ** power) ** (1 / power)
    cover = ((1 - distance) * radii[1] + 0.5).clamp(0, 1)  # the edge is about a pixel wide
    return torch.lerp(clip, piece, cover.float())
