"""Moving shapes: endless clips whose class, background and path are known, and a detector that reads them back.

A disc of one of four colours moves over a smooth dark background, across, up and down, or around. A class is a colour
and a motion; background, speed, place and phase are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
RADIUS, REACH = 5.0, 10.0  # of the disc, and how far it goes from the centre of the picture, in pixels
COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1)}
# Pixels that a motion's cycle is long.
MOTIONS = {"across": 4 * REACH, "up and down": 4 * REACH, "around": 2 * math.pi * REACH}
CLASSES = [f"{colour} {motion}" for colour in COLOURS for motion in MOTIONS]
SPEEDS = (0.4, 1.2)  # pixels a frame
BRIGHT = 0.1  # no background is; the disc is, in one channel at least


def render(rng: np.random.Generator, labels: Tensor, frames: int) -> Tensor:
    """Clips of the classes ``labels`` (B,): (B, 3, frames, SIDE, SIDE) in [-1, 1]."""
    count = len(labels)
    grid = torch.from_numpy(rng.uniform(-0.9, -0.3, (count, 3, 4, 4))).float()
    background = F.interpolate(grid, size=SIDE, mode="bicubic").clamp(-1, -0.2)
    pace = torch.from_numpy(rng.uniform(*SPEEDS, count) * rng.choice([-1, 1], count))
    phase, aside = (torch.from_numpy(rng.uniform(*ends, (count, 1))) for ends in ((0, 1), (-REACH, REACH)))
    lengths = torch.tensor(list(MOTIONS.values()), dtype=torch.float64)[labels % len(MOTIONS)]
    turns = phase + (pace / lengths)[:, None] * torch.arange(frames)
    of_motion = torch.stack([path(motion, turns, aside) for motion in MOTIONS])
    centres = of_motion[labels % len(MOTIONS), torch.arange(count)].float()
    colours = torch.tensor(list(COLOURS.values()))[labels // len(MOTIONS)].float()
    shape = (RADIUS + 0.5 - distances(centres)).clamp(0, 1)
    return torch.lerp(background[:, :, None], colours[:, :, None, None, None], shape[:, None])


def path(motion: str, turns: Tensor, aside: Tensor) -> Tensor:
    """Where the disc is after so many cycles, x and y in pixels (..., 2); ``aside`` is of straight paths."""
    if motion == "around":
        angle = 2 * math.pi * turns
        return SIDE / 2 + REACH * torch.stack([angle.cos(), angle.sin()], dim=-1)
    straight = REACH * (4 * (turns - (turns + 0.5).floor()).abs() - 1)
    both = [straight, aside.expand_as(straight)]
    return SIDE / 2 + torch.stack(both if motion == "across" else both[::-1], dim=-1)


def distances(centres: Tensor) -> Tensor:
    """Of all pixels from ``centres`` (..., 2): (..., SIDE, SIDE)."""
    places = torch.arange(SIDE) + 0.5
    x, y = ((places - centres[..., axis, None]).square() for axis in (0, 1))
    return (y[..., :, None] + x[..., None, :]).sqrt()


@dataclass(frozen=True)
class Seen:
    """What the detector sees of a clip.

    Attributes:
        colour, motion: their numbers; -1 where there is no disc in one of the frames.
        errors: RMS distance in pixels of the disc's path from the nearest path of each motion.
        drift: RMS change of pixels that the disc never touches, from their mean over the first quarter of the clip to
            that over the last, in 8-bit levels: 0 in every true clip.
    """

    colour: int
    motion: int
    errors: tuple[float, ...]
    drift: float

    def is_of(self, label: int) -> bool:
        return (self.colour, self.motion) == divmod(label, len(MOTIONS))


def detect(video: Tensor) -> Seen:
    """Read a clip (3, F, SIDE, SIDE) back."""
    light = (video.amax(0) - BRIGHT).clamp_min(0)  # (F, SIDE, SIDE)
    mass = light.sum((1, 2))
    places = torch.arange(SIDE) + 0.5
    columns, rows = (light.sum(dim) @ places / mass.clamp_min(1e-6) for dim in (1, 2))
    centres = torch.stack([columns, rows], dim=1)
    untouched = distances(centres).amin(0) > RADIUS + 2
    still, quarter = video[:, :, untouched], max(1, len(centres) // 4)  # (3, F, pixels)
    change = still[:, -quarter:].mean(1) - still[:, :quarter].mean(1)
    drift = float(change.square().mean().sqrt()) * 127.5
    errors = tuple(_misfit(motion, centres) for motion in MOTIONS)
    if mass.min() < 0.2 * math.pi * RADIUS**2 * (1 - BRIGHT):
        return Seen(-1, -1, errors, drift)
    weight = light.square() / light.square().sum()
    mean = (video * weight).sum((1, 2, 3))
    colour = (torch.tensor(list(COLOURS.values())) - mean).square().sum(1).argmin()
    return Seen(int(colour), int(np.argmin(errors)), errors, drift)


def _misfit(motion: str, centres: Tensor) -> float:
    """RMS distance of a path (F, 2) from the nearest one of the motion: speeds and phases are tried to half a pixel."""
    frames, length = len(centres), MOTIONS[motion]
    speeds = torch.linspace(*SPEEDS, math.ceil((SPEEDS[1] - SPEEDS[0]) * frames / 2) + 2)
    rates = torch.cat([speeds, -speeds]).repeat_interleave(2 * math.ceil(length)) / length
    phases = torch.arange(2 * math.ceil(length)).repeat(2 * len(speeds)) / (2 * math.ceil(length))
    aside = centres[:, 1 if motion == "across" else 0].mean() - SIDE / 2
    some = torch.arange(0, frames, math.ceil(frames / 32))  # enough to choose by
    tried = path(motion, phases[:, None] + rates[:, None] * some, aside)
    best = (tried - centres[some]).square().sum(2).mean(1).argmin()
    nearest = path(motion, phases[best] + rates[best] * torch.arange(frames), aside)
    return float((nearest - centres).square().sum(1).mean().sqrt())
