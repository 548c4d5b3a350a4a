"""Reading video files, one frame at a time or some of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from torch import Tensor

from tivtok.files import not_a_file
from tivtok.video.decoding import Damage, Decoded, frames_from, whole_frames
from tivtok.video.errors import VideoError
from tivtok.video.opening import check_decodable, open_input
from tivtok.video.orientation import display_matrix, upright
from tivtok.video.part import FilePart
from tivtok.video.timing import timeline

# Formats in which FFmpeg finds key frames by their time. Others are read from the start.
SEEKABLE_FORMATS = frozenset({"asf", "avi", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpegts", "ogg"})

# How many frames before the wanted one to look for a key frame, when the first one found comes after it.
STEPS_BACK = (0, 16, 128, 1024)

# What is made of each frame as it comes, (1, H, W, 3) -> (1, h, w, 3): smaller ones, so that no more is held.
Change = Callable[[Tensor], Tensor]


# Makes the picture of a frame, uint8 (H, W, 3): only of those that are wanted.
Picture = Callable[[], np.ndarray]


def unchanged(frame: Tensor) -> Tensor:
    return frame


class VideoReader:
    """A video file. Iterating decodes it from the start, one frame at a time, as uint8 arrays (H, W, 3).

    Args:
        path: the file.
        allow_truncated: let the frames just end where the file is damaged or ends early.
        strict: make it an error, too, where the decoder has made up for damage.
        member: offset and size in bytes of the video inside ``path``, where that is a tar.
        threads: of the decoder, 0 is as many as there are cores.

    Attributes:
        height, width: of the frames as they come, rotation applied.
        timeline: when each frame is shown.
        fps: frames per second, a Fraction: the nominal rate where the frames keep to it, or else frames over duration;
            None when the file does not say.
        expected_frames: by the file's packets, which may hold fewer or more.
        num_read: how many frames the last iteration or `read` has given so far.
        damaged_frames: the numbers of those among them that the decoder has made up in part or whole.

    Raises:
        VideoError: not a file, not a video, no video stream or no frames; while iterating: the file is damaged or ends
            early (unless ``allow_truncated``: then iteration just ends there), or the frame size changes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        allow_truncated: bool = False,
        *,
        strict: bool = False,
        member: tuple[int, int] | None = None,
        threads: int = 0,
    ) -> None:
        self.path = Path(path)
        self.allow_truncated = allow_truncated
        self.strict = strict
        self.member = member
        self.threads = threads
        self.num_read = 0
        self.damaged_frames: list[int] = []
        with self._open() as container:
            self.timeline = timeline(container, self._stream(container))
        with self._open() as container:
            first = next(self._decode(container), None)
        if first is None:
            raise VideoError(f"{self.path} has no video frames")
        self.height, self.width = upright(first.frame, first.origin.exif).shape[:2]
        self._matrix = display_matrix(first.frame)
        self._left_out = self.timeline.number_of(first.origin.time) or 0  # frames that cannot be decoded
        self.timeline = self.timeline.starting_at(self._left_out)

    @property
    def fps(self) -> Fraction | None:
        return self.timeline.rate

    @property
    def expected_frames(self) -> int:
        return len(self.timeline)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def frames(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """The frames from number ``first`` on, up to ``last`` but without it.

        Where timestamps tell the frames apart, decoding begins at a key frame shortly before the first.
        """
        self.num_read, self.damaged_frames = 0, []
        expected = first
        for number, picture in self._all_from(first):
            if last is not None and number >= last:
                return
            if number >= expected:
                yield picture()
                expected = number + 1

    def chunks(
        self, num_frames: int, first: int = 0, last: int | None = None, change: Change = unchanged
    ) -> Generator[Tensor, None, None]:
        """The `frames` as ``change`` makes them, uint8 (num_frames, H, W, 3); the last chunk may be shorter."""
        chunk: list[Tensor] = []
        for frame in self.frames(first, last):
            chunk.append(change(torch.from_numpy(frame)[None]))
            if len(chunk) == num_frames:
                yield torch.cat(chunk)
                chunk = []
        if chunk:
            yield torch.cat(chunk)

    def read(self, numbers: Sequence[int], change: Change = unchanged) -> Tensor:
        """The frames with these numbers, ascending, as ``change`` makes them, uint8 (n, H, W, 3).

        Fewer where the file ends before the last.

        Where timestamps tell the frames apart, decoding begins at a key frame shortly before the first.

        Raises:
            VideoError: as while iterating, or the file ends before the first of them.
        """
        try:
            return self._pick(self._pictures_from(numbers[0]), numbers, change)
        except (_NotInOrder, Damage, av.FFmpegError):
            return self._pick(self._pictures_from(0), numbers, change)

    def damage(self) -> str:
        """Describe ``damaged_frames`` in a line; empty where nothing is damaged."""
        if not self.damaged_frames:
            return ""
        first = self.damaged_frames[0]
        return (
            f"{self.path} is damaged: {len(self.damaged_frames)} of {self.num_read} frames are made up in part or "
            f"whole, the first is frame {first}{self.timeline.place(first)}"
        )

    def _pick(self, frames: Iterator[tuple[int, Picture]], numbers: Sequence[int], change: Change) -> Tensor:
        self.num_read, self.damaged_frames = 0, []
        picked: list[Tensor] = []
        for number, picture in frames:
            while len(picked) < len(numbers) and numbers[len(picked)] == number:
                picked.append(change(torch.from_numpy(picture())[None]))
            if len(picked) == len(numbers):
                break
        if not picked:
            raise VideoError(f"{self.path} has no frame {numbers[0]}")
        return torch.cat(picked)

    def _all_from(self, first: int) -> Iterator[tuple[int, Picture]]:
        """`_pictures_from`, and once more from the start of the file where that gives up: some frames come twice."""
        if first:
            try:
                yield from self._pictures_from(first)
                return
            except (_NotInOrder, Damage, av.FFmpegError):
                pass
        yield from self._pictures_from(0)

    def _pictures_from(self, first: int) -> Iterator[tuple[int, Picture]]:
        """Numbers of frames, from ``first`` or one before it on, and what makes their pictures: raises as both do."""
        for number, decoded in self._numbered_from(first):
            yield number, partial(self._picture, number, decoded)

    def _numbered_from(self, first: int) -> Iterator[tuple[int, Decoded]]:
        """Frames and their numbers, from ``first`` or one before it on.

        Raises:
            _NotInOrder: while iterating: what comes out is not what the timestamps say.
        """
        with self._open() as container:
            stream = self._stream(container)
            if not (first and self.timeline.by_time and container.format.name in SEEKABLE_FORMATS):
                yield from enumerate(self._decode(container))
                return
            for back in STEPS_BACK:
                time = int(self.timeline.times[min(max(0, first - back), len(self.timeline) - 1)])
                frames = frames_from(container, stream, time, self.threads)
                decoded = next(frames, None)
                number = None if decoded is None else self.timeline.number_of(decoded.origin.time)
                if decoded is not None and number is not None and number <= first:
                    break
            else:
                raise _NotInOrder
            while decoded is not None:
                if self.timeline.number_of(decoded.origin.time) != number:
                    raise _NotInOrder
                yield number, decoded
                decoded, number = next(frames, None), number + 1

    def _picture(self, number: int, decoded: Decoded) -> np.ndarray:
        """A frame in RGB, upright, if it is as it must be."""
        if decoded.damaged:
            if self.strict:
                place = self.timeline.place(number)
                raise VideoError(f"{self.path} is damaged: frame {number}{place} is made up in part or whole")
            self.damaged_frames.append(number)
        return self._counted(number, upright(decoded.frame, decoded.origin.exif))

    def _counted(self, number: int, picture: np.ndarray) -> np.ndarray:
        """The picture of frame ``number``, if it has the size of the first one."""
        if picture.shape[:2] != (self.height, self.width):
            raise VideoError(
                f"{self.path} changes its frame size from {self.width}x{self.height} "
                f"to {picture.shape[1]}x{picture.shape[0]} at frame {number}"
            )
        self.num_read += 1
        return picture

    def _open(self) -> InputContainer:
        if not self.path.is_file():
            raise VideoError(f"{self.path} {not_a_file(self.path)}")
        try:
            container = open_input(self.path if self.member is None else FilePart(self.path, *self.member))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} cannot be read as a video: {error.strerror}") from None
        if container.format.name == "tty":  # the format that any file named .txt has
            container.close()
            raise VideoError(f"{self.path} cannot be read as a video: it is text")
        return container

    def _stream(self, container: InputContainer) -> VideoStream:
        stream = video_stream(container)
        if stream is None:
            raise VideoError(f"{self.path} has no video stream")
        check_decodable(stream)
        return stream

    def _decode(self, container: InputContainer) -> Iterator[Decoded]:
        """All frames; then the error if the file is damaged."""
        count = 0
        try:
            for decoded in whole_frames(container, self._stream(container), self.threads):
                count += 1
                yield decoded
        except Damage as damage:
            if not self.allow_truncated:
                raise VideoError(
                    f"{self.path} is truncated or damaged after {count} readable frames: {damage}"
                ) from None


def video_stream(container: InputContainer) -> VideoStream | None:
    """The first one that is not the cover picture of a song."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


class _NotInOrder(Exception):
    """Frames come out in another order than their timestamps say, so only counting them tells them apart."""
