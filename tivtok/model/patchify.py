"""Video to patch vectors and back, padding what does not divide and cropping it again exactly."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Patch = tuple[int, int, int]


def pad_to_patches(video: Tensor, patch: Patch) -> Tensor:
    """Repeat the last frame, row and column of (B, 3, F, H, W) until all three are multiples of the patch."""
    pad = [-size % step for size, step in zip(video.shape[2:], patch, strict=True)]
    if not any(pad):
        return video
    frames, rows, columns = pad
    return F.pad(video, (0, columns, 0, rows, 0, frames), mode="replicate")


def patch_grid(num_frames: int, height: int, width: int, patch: Patch) -> tuple[int, int, int]:
    """Frame groups, patch rows and patch columns of a video once it is padded."""
    groups, rows, columns = (-(-size // step) for size, step in zip((num_frames, height, width), patch, strict=True))
    return groups, rows, columns


def patchify(video: Tensor, patch: Patch) -> Tensor:
    """(B, 3, F, H, W), all multiples of the patch -> (B, groups, rows * columns, 3 * patch values)."""
    f, h, w = patch
    batch, channels, frames, height, width = video.shape
    x = video.reshape(batch, channels, frames // f, f, height // h, h, width // w, w)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(batch, frames // f, (height // h) * (width // w), channels * f * h * w)


def unpatchify(patches: Tensor, grid: tuple[int, int, int], patch: Patch) -> Tensor:
    """The inverse of `patchify`: (B, groups, rows * columns, 3 * patch values) -> (B, 3, F, H, W)."""
    f, h, w = patch
    groups, rows, columns = grid
    x = patches.reshape(-1, groups, rows, columns, 3, f, h, w).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(-1, 3, groups * f, rows * h, columns * w)
