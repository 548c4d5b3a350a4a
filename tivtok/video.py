"""Video files in and out, streamed: frames are uint8 RGB (H, W, 3), the model's video float (3, F, H, W) in [-1, 1].

What comes back, by rule:
- Every stored frame once, in the order shown. Frames of variable duration become evenly spaced at the average rate.
- Rotation from the file's display matrix is applied (in quarter turns). Pixels count as square.
- A file that ends early, or is damaged, gives all frames up to there and then an error that says how many there were.
- Written: H.264, BT.709 colours; even sizes as yuv420p, which plays everywhere, odd sizes as yuv444p, since yuv420p has
  no odd sizes and no pixel is to be lost. Sound is left out unless asked for, then copied as it is from the first
  audio track of a file, up to the end of the pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from tivtok.audio import AudioCopy, AudioError
from tivtok.files import replacing

# Matroska states how long a track is, and a file cut between two packets reads like a shorter one without this.
MAX_MISSING_SECONDS = 0.5

# Frame rates that H.264 files can state.
MIN_FPS, MAX_FPS = 0.001, 100_000

# Matrix, primaries and transfer curve of BT.709 (ITU-T H.273).
BT709 = 1

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


class VideoError(ValueError):
    """A video that cannot be read or written; the message names the file and says why."""


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
            raise VideoError(f"{self.path} is {'not a file' if self.path.exists() else 'missing'}")
        try:
            container = av.open(str(self.path))
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


class VideoWriter:
    """Write H.264, frame by frame: ``with VideoWriter("out.mp4", fps=25, width=64, height=48) as out: out.write(x)``.

    The container is chosen by the suffix (.mp4, .mkv, .mov). The file appears under its name when the ``with`` block
    ends well; otherwise nothing is left behind.

    Args:
        fps: frames per second.
        width, height: of the frames to come.
        crf: x264's constant rate factor, lower is better and larger; 18 is visually close to lossless.
        audio_from: a file whose sound goes with the pictures.

    Raises:
        VideoError: the file cannot be written, or no frame was.
        AudioError: there is no sound in ``audio_from``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction,
        width: int,
        height: int,
        crf: int = 18,
        audio_from: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(path)
        if not MIN_FPS <= fps <= MAX_FPS:
            raise VideoError(f"fps must be between {MIN_FPS} and {MAX_FPS}, got {fps}")
        self.fps = Fraction(fps).limit_denominator(100_000)  # 29.97002997... becomes 30000/1001 again
        self.width = width
        self.height = height
        self.crf = crf
        self.audio_from = audio_from

    def __enter__(self) -> VideoWriter:
        with ExitStack() as cleanup:
            try:
                temporary = cleanup.enter_context(replacing(self.path))
                options = {"movflags": "faststart"} if self.path.suffix in (".mp4", ".m4v", ".mov") else {}
                self._container: OutputContainer = av.open(str(temporary), "w", options=options)
                cleanup.callback(self._close)
                self._stream = self._add_stream()
                self._audio = None
                if self.audio_from is not None:
                    self._audio = cleanup.enter_context(AudioCopy(self.audio_from, self._container))
            except AudioError:
                raise
            except (OSError, ValueError) as error:  # ValueError: no such container, or not for these codecs
                raise VideoError(f"{self.path} cannot be written: {_reason(error)}") from None
            self._cleanup = cleanup.pop_all()
        self._written = 0
        return self

    def write(self, frames: np.ndarray | Tensor) -> None:
        """Append one frame (H, W, 3) or several (n, H, W, 3), uint8 RGB."""
        frames = np.asarray(frames)
        frames = frames[None] if frames.ndim == 3 else frames
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            raise VideoError(
                f"frames must be uint8 (n, {self.height}, {self.width}, 3), got {frames.dtype} {frames.shape}"
            )
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), "rgb24").reformat(
                format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            self._mux(frame)
            self._written += 1
            if self._audio is not None:
                self._audio.copy_until(float(self._written / self.fps))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._cleanup.__exit__(kind, error, traceback)
            return
        with self._cleanup:
            if not self._written:
                raise VideoError(f"{self.path} was not written: there were no frames")
            self._mux(None)

    def _add_stream(self) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self.fps, options={"crf": str(self.crf)})
        stream.width, stream.height = self.width, self.height
        stream.pix_fmt = "yuv444p" if self.width % 2 or self.height % 2 else "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        return stream

    def _mux(self, frame: av.VideoFrame | None) -> None:
        """Encode a frame, or with None what the encoder still holds."""
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} cannot be written: {_reason(error)}") from None

    def _close(self) -> None:
        try:
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} cannot be written: {_reason(error)}") from None


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """The files below ``folder`` that are named like videos, sorted."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def frames_to_video(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> float32 (3, F, H, W) in [-1, 1]."""
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


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
    """uint8 (F, H, W, 3) to ``height`` x ``width``, bicubic and antialiased; as it is where it has that size."""
    if frames.shape[1:3] == (height, width):
        return frames
    planes = frames.permute(0, 3, 1, 2).float()
    planes = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _video_stream(container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover picture of a song
            return stream
    raise VideoError(f"{container.name} has no video stream")


def _whole_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of all packets that are whole.

    Raises:
        _Damage: after the last of them, when the file ends early or a packet cannot be decoded.
    """
    stream.thread_type = "AUTO"
    stated, end, damage = _stated_seconds(container, stream), 0.0, None
    try:
        for packet, following in pairwise(container.demux(stream)):
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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
