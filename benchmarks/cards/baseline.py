"""Baselines of a tokenizer: as many numbers as its tokens hold, of the video or its DCT, and a still picture."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(video: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(B, 3, F, H, W) down to ``size`` = (f, h, w) and back: bicubic in space (antialiased), linear in time."""
    frames, height, width = video.shape[2:]
    small = _in_time(_in_space(video, size[1:]), size[0])
    return _in_space(_in_time(small, frames), (height, width))


def best_resampling(video: Tensor, num_values: int) -> tuple[tuple[int, int, int], Tensor]:
    """The grid of at most ``num_values`` numbers (3 per point) with the least squared error, and its reconstruction.

    Args:
        video: (B, 3, F, H, W) in [-1, 1]; one grid is chosen for all of it.
    """
    frames, height, width = video.shape[2:]
    candidates = []
    for f, h in product((n for n in range(1, frames + 1) if frames % n == 0), range(1, height + 1)):
        w = min(round(h * width / height), width)
        if w and 3 * f * h * w <= num_values and 3 * f * (h + 1) * (w + 1) > num_values:
            candidates.append((f, h, w))
    if not candidates:
        raise ValueError(f"num_values must allow a grid of one point per frame at least, got {num_values}")
    tries = [(size, resample(video, size).clamp(-1, 1)) for size in candidates]
    return min(tries, key=lambda t: float(F.mse_loss(t[1], video)))


def still(video: Tensor, frames_per_group: int = 4) -> Tensor:
    """The best that frame groups which are all the same can show: each is the mean of all, without loss."""
    groups = video.unflatten(2, (-1, frames_per_group))
    return groups.mean(2, keepdim=True).expand_as(groups).flatten(2, 3)


def dct_coefficients(videos: Tensor, num_values: int) -> Tensor:
    """Videos from so many of their 3D DCT coefficients: those with the most energy in all of them together.

    Colours are first turned to one of brightness and two of hue (orthonormal YCoCg), which have little in common.

    Args:
        videos: (B, 3, F, H, W) in [-1, 1]; one choice of coefficients is made for all of them.
    """
    coefficients = transform(videos)
    energy = coefficients.square().sum(0).flatten()
    kept = torch.zeros_like(energy)
    kept[energy.argsort(descending=True)[:num_values]] = 1
    return transform(coefficients * kept.view(videos.shape[1:]), back=True).to(videos.dtype)


def transform(videos: Tensor, back: bool = False) -> Tensor:
    """Coefficients (..., 3, F, H, W) of an orthonormal transform over colours, time and space, or ``back``; float64."""
    found = videos.double()
    for axis, matrix in enumerate((_COLOURS, *(_dct_basis(size) for size in videos.shape[-3:])), -4):
        found = ((matrix.T if back else matrix) @ found.movedim(axis, -2)).movedim(-2, axis)
    return found


_COLOURS = F.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64), dim=1)


def _dct_basis(size: int) -> Tensor:
    """float64 (size, size), orthonormal: row k is the k-th cosine of the DCT-II."""
    numbers = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(torch.pi * numbers[:, None] * (numbers + 0.5) / size) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis


def _in_space(video: Tensor, size: tuple[int, int]) -> Tensor:
    frames = video.transpose(1, 2).flatten(0, 1)
    resized = F.interpolate(frames, size=size, mode="bicubic", antialias=True)
    return resized.unflatten(0, (video.shape[0], -1)).transpose(1, 2)


def _in_time(video: Tensor, frames: int) -> Tensor:
    """Linear interpolation; shrinking averages, so that no frame goes unseen."""
    if frames < video.shape[2]:
        return video.unflatten(2, (frames, -1)).mean(dim=3)
    flat = video.permute(0, 1, 3, 4, 2).flatten(0, 3)[:, None]
    grown = F.interpolate(flat, size=frames, mode="linear", align_corners=False)
    shape = torch.Size([*video.shape[:2], *video.shape[3:], frames])
    return grown.view(shape).permute(0, 1, 4, 2, 3)
