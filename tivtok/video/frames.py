"""Frames as pictures, uint8 (F, H, W, 3), and as the model's video, float (3, F, H, W) in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def frames_to_video(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> float32 (3, F, H, W) in [-1, 1]."""
    return to_float(frames.permute(3, 0, 1, 2), torch.float32)


def to_float(video: Tensor, dtype: torch.dtype) -> Tensor:
    """Video of any shape in ``dtype``: floating point as it is, uint8 from 0..255 to [-1, 1]."""
    if video.dtype == torch.uint8:
        video = video.to(torch.promote_types(dtype, torch.float32)) / 127.5 - 1
    return video.to(dtype)


def video_to_frames(video: Tensor) -> Tensor:
    """The inverse, rounded and clamped: float (3, F, H, W) in [-1, 1] -> uint8 (F, H, W, 3)."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def fit(frames: Tensor, height: int, width: int) -> Tensor:
    """Cut the centre of uint8 (F, H, W, 3) to the shape of ``height`` x ``width`` and resize it, antialiased."""
    have_h, have_w = frames.shape[1:3]
    scale = min(have_h / height, have_w / width)
    cut_h, cut_w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (have_h - cut_h) // 2, (have_w - cut_w) // 2
    return resize(frames[:, top : top + cut_h, left : left + cut_w], height, width)


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """uint8 (F, H, W, 3) to ``height`` x ``width``, bicubic and antialiased; as it is where it has that size.

    All frames are resized here, for training, streaming and metrics alike. Computed on 8 bits: the same as in floating
    point to about a level, without its memory.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    planes = frames.permute(0, 3, 1, 2)
    planes = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous()
