"""Writing video files, frame by frame."""

from __future__ import annotations

import os
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from tivtok.files import replacing
from tivtok.video.audio import AudioCopy
from tivtok.video.errors import AudioError, VideoError
from tivtok.video.opening import file_url

# Frame rates that H.264 files can state.
MIN_FPS, MAX_FPS = 0.001, 100_000

# Matrix, primaries and transfer curve of BT.709 (ITU-T H.273).
BT709 = 1


class VideoWriter:
    """Write H.264, frame by frame: ``with VideoWriter("out.mp4", fps=25, width=64, height=48) as out: out.write(x)``.

    The container is chosen by the suffix (.mp4, .mkv, .mov). The file appears under its name when the ``with`` block
    ends well; otherwise nothing is left behind.

    Args:
        fps: frames per second.
        width: of the frames to come.
        height: of the frames to come.
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
                self._container: OutputContainer = av.open(file_url(temporary), "w", options=options)
                cleanup.callback(self._close)
                self._stream = self._add_stream()
                self._audio = None
                if self.audio_from is not None:
                    self._audio = cleanup.enter_context(AudioCopy(self.audio_from, self._container))
            except (AudioError, VideoError):
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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
