"""Parts of video files: frames of a file, or of a member of a tar, without decoding all that comes before."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from torch import Tensor

from tivtok.training.sources import VideoRef
from tivtok.video import VideoError, upright
from tivtok.video.opening import open_input


def read_clip(ref: VideoRef, count: int, stride: int = 1, position: float = 0.0) -> Tensor:
    """``count`` frames, every ``stride``-th one, uint8 (F, H, W, 3). A video that is too short repeats its last frame.

    Args:
        position: of the clip between the first (0) and the last (1) place that it can have, by the length and the
            frame rate that the file states.

    Raises:
        VideoError: the video cannot be read, or has no frame there.
    """
    with _open(ref) as container:
        rate, length = _timing(ref, container)
        times = ref.start + frame_indices(round(length * rate), count, stride, position) / rate
        frames = _frames(container, times[0] - 0.5 / rate)
        _, frame = next(frames, (0.0, None))
        if frame is None:
            raise VideoError(f"{ref.name} has no frame from {times[0]:.2f} s on")
        clip, shown = [upright(frame)], times[0]
        for time in times[1:]:
            while shown < time - 0.5 / rate and (following := next(frames, None)) is not None:
                shown, frame = following
            clip.append(upright(frame))
        return torch.from_numpy(np.stack(clip))


def read_video(ref: VideoRef) -> Tensor:
    """All frames, uint8 (F, H, W, 3).

    Raises:
        VideoError: the video cannot be read, or has no frames.
    """
    with _open(ref) as container:
        end = float("inf") if ref.end is None else ref.end
        frames = [upright(frame) for time, frame in _frames(container, ref.start) if time < end]
    if not frames:
        raise VideoError(f"{ref.name} has no frames between {ref.start} s and {ref.end} s")
    return torch.from_numpy(np.stack(frames))


def frame_indices(num_frames: int, count: int, stride: int, position: float) -> np.ndarray:
    """int64 (count,): the frames of a clip; at stride 1 where it does not fit, then repeating the last one."""
    if (count - 1) * stride >= num_frames:
        stride = 1
    places = max(1, num_frames - (count - 1) * stride)
    first = min(int(position * places), places - 1)
    return (first + stride * np.arange(count)).clip(max=max(0, num_frames - 1))


@contextmanager
def _open(ref: VideoRef) -> Iterator[InputContainer]:
    """Every way in which a file can be broken becomes a `VideoError` that names it."""
    try:
        with open_input(ref.path) if ref.member is None else av.open(_member(ref), "r") as container:
            if not container.streams.video:
                raise VideoError(f"{ref.name} has no video stream")
            container.streams.video[0].thread_count = 1  # the data loader's workers are the parallelism
            yield container
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{ref.name} ({ref.path}) cannot be read: {error.strerror}") from None


def _member(ref: VideoRef) -> io.BytesIO:
    assert ref.member is not None
    offset, size = ref.member
    with ref.path.open("rb") as tar:
        tar.seek(offset)
        return io.BytesIO(tar.read(size))


def _timing(ref: VideoRef, container: InputContainer) -> tuple[float, float]:
    """Frames per second, and the seconds of the part that counts, as the file states them."""
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate
    if rate is None:
        raise VideoError(f"{ref.name} states no frame rate")
    if stream.frames:
        seconds = float(stream.frames / rate)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        raise VideoError(f"{ref.name} states no length")
    return float(rate), (seconds if ref.end is None else min(seconds, ref.end)) - ref.start


def _frames(container: InputContainer, start: float) -> Iterator[tuple[float, VideoFrame]]:
    """(seconds from the first frame, frame) of the frames from ``start`` on."""
    stream = container.streams.video[0]
    tick = float(stream.time_base or 1)  # seconds
    begin = (stream.start_time or 0) * tick

    def decode() -> Iterator[tuple[float, VideoFrame]]:
        return ((f.time - begin, f) for f in container.decode(stream) if f.time is not None)

    decoded = decode()
    if start > 0:
        container.seek(int((begin + start) / tick), stream=stream)
        first = next(decoded, None)
        if first is None or first[0] > start:  # an index that leads too far: decode what comes before after all
            container.seek(stream.start_time or 0, stream=stream)
            decoded = decode()
        elif first[0] == start:
            yield first
    for time, frame in decoded:
        if time >= start:
            yield time, frame
