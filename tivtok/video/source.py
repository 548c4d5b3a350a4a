"""A video as a model takes it: whole or a part, at one size, a chunk at a time."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from tivtok.files import fetched
from tivtok.video.ahead import ahead
from tivtok.video.clips import frames_of
from tivtok.video.errors import VideoError
from tivtok.video.frames import fit
from tivtok.video.readers import open_video
from tivtok.video.sources import VideoRef


class Source:
    """A video file, or a part of one, at the size asked for, read as often as needed.

    A video at an address is fetched into a temporary file, which goes with this object.

    Args:
        chunk_frames: of each chunk, the last may be shorter.
        size: "source", "native" (``native_size``), or WIDTHxHEIGHT; the centre is cut to fit.
        native_size: height and width that the model was trained at.
        threads: of the decoder, 0 is as many as there are cores.
        reader: as of `tivtok.video.readers.open_video`.

    Attributes:
        height, width: of the frames as they come.
        fps: frames per second, or None.
        expected_frames: how many there are, by the file's packets.

    Raises:
        VideoError: as `VideoReader`, there is no such part, or the address cannot be read.
        ValueError: ``size`` is none of these, or as of `open_video`.
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
        reader: str = "pyav",
    ) -> None:
        self._ref = ref
        self.path = ref.path if not ref.address else self._fetch(ref.address)
        self.chunk_frames = chunk_frames
        with self._named():
            self._reader = open_video(
                self.path, reader, allow_truncated, strict=strict, member=ref.member, threads=threads
            )
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
        return ahead(self._fitted())

    def _fitted(self) -> Generator[Tensor, None, None]:
        fitted = partial(fit, height=self.height, width=self.width)
        with self._named():
            yield from self._reader.chunks(self.chunk_frames, self._first, self._last, fitted)

    def _fetch(self, address: str) -> Path:
        try:
            self._copy = fetched(address)
        except (OSError, ValueError) as error:
            raise VideoError(f"{address} cannot be fetched: {error}") from None
        return Path(self._copy.name)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let errors name the address, and not the file that was fetched from it."""
        try:
            yield
        except VideoError as error:
            raise VideoError(self._told(str(error))) from None

    def _told(self, text: str) -> str:
        return text.replace(str(self.path), self._ref.address) if self._ref.address else text

    def damage(self) -> str:
        """Describe damage in what was read last, in a line; empty where there is none."""
        return self._told(self._reader.damage())


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
