"""Reading video files, one frame at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from torch import Tensor

from tivtok.files import not_a_file
from tivtok.video.errors import VideoError
from tivtok.video.opening import check_clear, check_decodable, open_input, path_of

# Matroska states how long a track is, and a file cut between two packets reads like a shorter one without this.
MAX_MISSING_SECONDS = 0.5


class _Damage(Exception):
    """A file stops being readable; the message says how."""


class VideoReader:
    """A video file. Iterating decodes it from the start, one frame at a time, as uint8 arrays (H, W, 3).

    Attributes:
        height, width: of the frames as they come, rotation applied.
        fps: average frames per second, None when the file does not say.
        expected_frames: what the file's header promises, for progress bars; it may be wrong, or None.

    Raises:
        VideoError: not a file, not a video, no video stream or no frames; while iterating: the file is damaged or ends
            early (unless ``allow_truncated``: then iteration just ends there), or the frame size changes.
    """

    def __init__(self, path: str | os.PathLike[str], allow_truncated: bool = False) -> None:
        self.path = Path(path)
        self.allow_truncated = allow_truncated
        with self._open() as container:
            stream = _video_stream(container)
            self.fps = stream.average_rate or stream.guessed_rate
            self.expected_frames = stream.frames or _frames_in(container.duration, self.fps)
            first = next(self._decode(container, stream), None)
        if first is None:
            raise VideoError(f"{self.path} has no video frames")
        self.height, self.width = first.shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._open() as container:
            for index, frame in enumerate(self._decode(container, _video_stream(container))):
                if frame.shape[:2] != (self.height, self.width):
                    raise VideoError(
                        f"{self.path} changes its frame size from {self.width}x{self.height} "
                        f"to {frame.shape[1]}x{frame.shape[0]} at frame {index}"
                    )
                yield frame

    def chunks(self, num_frames: int) -> Iterator[Tensor]:
        """The frames as uint8 tensors (num_frames, H, W, 3); the last one may be shorter."""
        chunk: list[np.ndarray] = []
        for frame in self:
            chunk.append(frame)
            if len(chunk) == num_frames:
                yield torch.from_numpy(np.stack(chunk))
                chunk = []
        if chunk:
            yield torch.from_numpy(np.stack(chunk))

    def _open(self) -> InputContainer:
        if not self.path.is_file():
            raise VideoError(f"{self.path} {not_a_file(self.path)}")
        try:
            container = open_input(self.path)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} cannot be read as a video: {error.strerror}") from None
        if container.format.name == "tty":  # the format that any file named .txt has
            container.close()
            raise VideoError(f"{self.path} cannot be read as a video: it is text")
        return container

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[np.ndarray]:
        """All frames in RGB, upright; then the error if the file is damaged."""
        count = 0
        try:
            for frame in _whole_frames(container, stream):
                count += 1
                yield upright(frame)
        except _Damage as damage:
            if not self.allow_truncated:
                raise VideoError(
                    f"{self.path} is truncated or damaged after {count} readable frames: {damage}"
                ) from None


def _video_stream(container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover picture of a song
            check_decodable(stream)
            return stream
    raise VideoError(f"{path_of(container)} has no video stream")


def _whole_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of all packets that are whole.

    Raises:
        _Damage: after the last of them, when the file ends early or a packet cannot be decoded.
    """
    stream.thread_type = "AUTO"
    stated, end, damage = _stated_seconds(container, stream), 0.0, None
    try:
        for packet, following in pairwise(container.demux(stream)):
            check_clear(packet)
            if packet.is_corrupt and not following.size:  # an empty packet comes last
                damage = "it ends within a frame"
            else:
                end = max(end, float(((packet.pts or 0) + (packet.duration or 0)) * (packet.time_base or 0)))
                yield from packet.decode()
        if stated - end > MAX_MISSING_SECONDS:
            damage = f"it states {stated:.2f} s and ends after {end:.2f} s"
    except av.FFmpegError as error:
        damage = error.strerror
    try:
        yield from stream.decode(None)  # what the decoder still holds
    except av.FFmpegError as error:
        damage = damage or error.strerror
    if damage:
        raise _Damage(damage)


def _frames_in(duration: int | None, fps: Fraction | None) -> int | None:
    return None if duration is None or fps is None else round(duration / av.time_base * fps)


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Length of the track as a Matroska file states it ("00:00:01.600000000"), 0 where it does not."""
    stated = stream.metadata.get("DURATION", "") if "matroska" in container.format.name else ""
    try:
        hours, minutes, seconds = stated.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def upright(frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3), turned as the display matrix says (rotation: degrees counter-clockwise, as np.rot90 turns)."""
    rgb = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
