"""A video as a model takes it: whole or a part, at one size, a chunk at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from tivtok.video.ahead import ahead
from tivtok.video.clips import frames_of
from tivtok.video.frames import fit
from tivtok.video.reader import VideoReader
from tivtok.video.sources import VideoRef


class Source:
    """A video file, or a part of one, at the size asked for, read as often as needed.

    Args:
        chunk_frames: of each chunk, the last may be shorter.
        size: "source", "native" (``native_size``), or WIDTHxHEIGHT; the centre is cut to fit.
        native_size: height and width that the model was trained at.
        threads: of the decoder, 0 is as many as there are cores.

    Attributes:
        height, width: of the frames as they come.
        fps: frames per second, or None.
        expected_frames: how many there are, by the file's packets.

    Raises:
        VideoError: as `VideoReader`, or there is no such part.
        ValueError: ``size`` is none of these.
    """

    def __init__(
        self,
        ref: VideoRef,
        chunk_frames: int,
        size: str,
        native_size: tuple[int, int],
        allow_truncated: bool = False,
        strict: bool = False,
        threads: int = 0,
    ) -> None:
        self.path = ref.path
        self.chunk_frames = chunk_frames
        self._reader = VideoReader(ref.path, allow_truncated, strict=strict, member=ref.member, threads=threads)
        frames = frames_of(self._reader, ref)
        self._first, self._last = frames.start, None if ref.end is None else frames.stop
        self.expected_frames = len(frames)
        self.fps = None if self._reader.fps is None else float(self._reader.fps)
        self.height, self.width = parse_size(size, (self._reader.height, self._reader.width), native_size)

    def chunks(self) -> Iterator[Tensor]:
        """uint8 (f, height, width, 3) of ``chunk_frames`` frames each, the last may be shorter; read ahead in a thread.

        Raises:
            VideoError: as while iterating over a `VideoReader`.
        """
        fitted = partial(fit, height=self.height, width=self.width)
        return ahead(self._reader.chunks(self.chunk_frames, self._first, self._last, fitted))

    def damage(self) -> str:
        """Describe damage in what was read last, in a line; empty where there is none."""
        return self._reader.damage()


def parse_size(text: str, source: tuple[int, int], native: tuple[int, int]) -> tuple[int, int]:
    """A size as `Source` takes it -> (height, width).

    Raises:
        ValueError: it is none.
    """
    if text in ("source", "native"):
        return source if text == "source" else native
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise ValueError(f'size must be "source", "native" or WIDTHxHEIGHT such as 256x192, got "{text}"')
    return int(match[2]), int(match[1])
