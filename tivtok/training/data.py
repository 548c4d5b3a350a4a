"""Clips for training and measuring, held in memory at a few resolutions."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tivtok.training.config import TrainConfig
from tivtok.video import VideoReader, find_videos, fit, frames_to_video, resize


class ClipSampler:
    """Random clips of decoded videos.

    Every draw depends on (seed, step) alone, so that a resumed run sees the clips it would have seen.
    """

    def __init__(self, videos: list[list[Tensor]], config: TrainConfig) -> None:
        """videos: per file, its frames at each of ``config.short_sides`` as uint8 (F, H, W, 3)."""
        self.videos = videos
        self.config = config
        weights = np.sqrt([levels[0].shape[0] for levels in videos])
        self.probabilities = weights / weights.sum()

    def batch(self, step: int) -> Tensor:
        """(B, 3, chunk_frames, *native_size) in [-1, 1]."""
        rng = np.random.default_rng((self.config.seed, step))
        return torch.stack([self._clip(rng) for _ in range(self.config.batch_size)])

    def _clip(self, rng: np.random.Generator) -> Tensor:
        config = self.config
        video = self.videos[rng.choice(len(self.videos), p=self.probabilities)][rng.integers(len(config.short_sides))]
        length = config.model.chunk_frames
        fitting = [s for s in config.strides if (length - 1) * s < video.shape[0]]
        stride = int(rng.choice(fitting)) if fitting else 1
        start = rng.integers(max(1, video.shape[0] - (length - 1) * stride))
        frames = (start + stride * np.arange(length)).clip(max=video.shape[0] - 1)
        if rng.random() < 0.5:
            frames = frames[::-1].copy()
        height, width = config.model.native_size
        top, left = rng.integers(video.shape[1] - height + 1), rng.integers(video.shape[2] - width + 1)
        clip = frames_to_video(video[frames, top : top + height, left : left + width])
        if rng.random() < 0.5:
            clip = clip.flip(-1)
        contrast, brightness = rng.uniform(0.8, 1.2), rng.uniform(-0.1, 0.1)
        return (clip * contrast + brightness).clamp(-1, 1)


def load_videos(paths: list[Path], short_sides: tuple[int, ...], min_size: tuple[int, int]) -> list[list[Tensor]]:
    """Decode every file once and keep it at each of ``short_sides`` (uint8, at least ``min_size`` large)."""
    return [[_resize(frames, side, min_size) for side in short_sides] for frames in map(read_frames, paths)]


def read_frames(path: Path) -> Tensor:
    """All frames of a file, uint8 (F, H, W, 3)."""
    return torch.cat(list(VideoReader(path).chunks(64)))


def held_out_clip(path: Path, config: TrainConfig) -> Tensor:
    """The protocol of every reported number: first ``chunk_frames`` frames, centre crop resized to ``native_size``.

    Returns:
        (3, F, H, W) in [-1, 1].
    """
    frames = next(VideoReader(path).chunks(config.model.chunk_frames))
    return frames_to_video(fit(frames, *config.model.native_size))


def split_files(config: TrainConfig) -> tuple[list[Path], list[Path]]:
    """Files to train on and held-out files.

    Raises:
        ValueError: one of the two is empty.
    """
    files = find_videos(config.data)
    held_out = [p for p in files if any(fnmatch(p.name, pattern) for pattern in config.held_out)]
    training = [p for p in files if p not in held_out]
    if not training or not held_out:
        raise ValueError(
            f"data must hold videos to train on and held-out ones: {config.data} has {len(files)} videos, "
            f"{len(held_out)} of them match held_out = {list(config.held_out)}"
        )
    return training, held_out


def _resize(frames: Tensor, short_side: int, min_size: tuple[int, int]) -> Tensor:
    """uint8 (F, H, W, 3) to ``short_side``, keeping the aspect ratio unless ``min_size`` forbids it."""
    scale = short_side / min(frames.shape[1:3])
    height, width = (max(round(n * scale), low) for n, low in zip(frames.shape[1:3], min_size, strict=True))
    return resize(frames, height, width)
