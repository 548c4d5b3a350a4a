"""Parts of video files: frames of a file, or of a member of a tar, without decoding all that comes before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tivtok.video.errors import VideoError
from tivtok.video.reader import Change, VideoReader, unchanged
from tivtok.video.sources import VideoRef

log = logging.getLogger(__name__)

# Videos whose timestamps each process remembers, a few bytes a frame.
REMEMBERED = 256


def read_clip(
    ref: VideoRef,
    count: int,
    stride: int = 1,
    position: float = 0.0,
    change: Change = unchanged,
    *,
    fps: float | None = None,
    strict: bool = False,
) -> Tensor:
    """``count`` frames, every ``stride``-th one, uint8 (F, H, W, 3). A video that is too short repeats its last frame.

    Args:
        position: of the clip between the first (0) and the last (1) place that it can have.
        change: what is made of each frame as it comes.
        fps: pick frames at this rate first, as `at_rate` does; None: each frame.
        strict: make it an error, not a warning in the log, where the decoder has made up for damage.

    Raises:
        VideoError: the video cannot be read, or has no frame there.
    """
    reader, frames = _part(ref, fps)
    clip = _read(reader, frames[frame_indices(len(frames), count, stride, position)], change, strict)
    return torch.cat([clip, clip[-1:].expand(count - len(clip), -1, -1, -1)])


def read_video(ref: VideoRef, *, fps: float | None = None, strict: bool = False) -> Tensor:
    """All frames, uint8 (F, H, W, 3); ``fps`` and ``strict`` as in `read_clip`.

    Raises:
        VideoError: the video cannot be read, or has no frames.
    """
    return read_levels(ref, [unchanged], fps=fps, strict=strict)[0]


def read_levels(
    ref: VideoRef, changes: Sequence[Change], *, fps: float | None = None, strict: bool = False
) -> list[Tensor]:
    """All frames as each of ``changes`` makes them, uint8 (F, h, w, 3): decoded once, and made smaller as they come.

    Raises:
        VideoError: as `read_video`.
    """
    shapes: list[torch.Size] = []

    def packed(frame: Tensor) -> Tensor:
        levels = [change(frame)[0] for change in changes]
        shapes[:] = [level.shape for level in levels]
        return torch.cat([level.flatten() for level in levels])[None]

    frames = _read(*_part(ref, fps), packed, strict)
    parts = frames.split([shape.numel() for shape in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def frame_indices(num_frames: int, count: int, stride: int, position: float) -> np.ndarray:
    """int64 (count,): the frames of a clip; at stride 1 where it does not fit, then repeating the last one."""
    if (count - 1) * stride >= num_frames:
        stride = 1
    places = max(1, num_frames - (count - 1) * stride)
    first = min(int(position * places), places - 1)
    return (first + stride * np.arange(count)).clip(max=max(0, num_frames - 1))


def at_rate(num_frames: int, source: float, wanted: float) -> np.ndarray:
    """int64: which frames of a video of ``source`` frames per second are shown at the times of ``wanted`` a second."""
    return (np.arange(max(1, int(num_frames * wanted / source))) * source / wanted).astype(np.int64)


def _part(ref: VideoRef, fps: float | None) -> tuple[VideoReader, np.ndarray]:
    """The video, and the numbers of the frames that count."""
    if ref.address:
        raise VideoError(f"{ref.address} is no file here, and only whole videos are fetched")
    try:
        status = ref.path.stat()
        reader = _reader(ref.path, ref.member, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise VideoError(f"{ref.name} ({ref.path}) cannot be read: {error.strerror}") from None
    except VideoError as error:
        raise VideoError(f"{ref.name} ({ref.path}) cannot be read: {error}") from None
    frames = np.array(frames_of(reader, ref))
    if fps is None:
        return reader, frames
    if reader.fps is None:
        raise VideoError(f"{ref.name} ({ref.path}) states no frame rate to pick {fps:g} frames per second of")
    return reader, frames[at_rate(len(frames), float(reader.fps), fps)]


def frames_of(reader: VideoReader, ref: VideoRef) -> range:
    """The numbers of the frames of ``ref``, whose file ``reader`` reads, by its timestamps.

    Raises:
        VideoError: the file does not say when its frames are shown, or has none there.
    """
    try:
        first = reader.timeline.first_from(ref.start) if ref.start else 0
        last = len(reader.timeline) if ref.end is None else reader.timeline.first_from(ref.end)
    except ValueError as error:
        raise VideoError(f"{ref.name} has no part from {ref.start} s to {ref.end} s: {error}") from None
    if first >= last:
        raise VideoError(f"{ref.name} has no frame from {ref.start} s on{f', before {ref.end} s' if ref.end else ''}")
    return range(first, last)


@lru_cache(maxsize=REMEMBERED)
def _reader(path: Path, member: tuple[int, int] | None, size: int, changed: int) -> VideoReader:
    """Cached for this size and time of change, so that a file that has changed is opened anew."""
    return VideoReader(path, member=member, threads=1)  # the data loader's workers are the parallelism


def _read(reader: VideoReader, numbers: np.ndarray, change: Change, strict: bool) -> Tensor:
    frames = reader.read(numbers.tolist(), change)
    if reader.damaged_frames:
        if strict:
            raise VideoError(reader.damage())
        log.warning("%s", reader.damage())
    return frames
