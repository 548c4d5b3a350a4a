"""The source video of a command: reading, encoding, comparing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

import tivtok.video.source as video_source
from tivtok.chunks.sharing import TivSets
from tivtok.cli.output import CommandError, StepsBar, say, track
from tivtok.streaming import decode_stream, encode_stream
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoError
from tivtok.video.sources import VideoRef

Result = TypeVar("Result")


class Source(video_source.Source):
    """The video that a command is given, as a file or as a list has it, read with a progress bar."""

    def __init__(
        self,
        video: Path | VideoRef,
        size: str,
        model: TivTok,
        allow_truncated: bool = False,
        strict: bool = False,
        reader: str = "pyav",
    ) -> None:
        config = model.config
        ref = video if isinstance(video, VideoRef) else VideoRef(video.name, video)
        super().__init__(ref, config.chunk_frames, size, config.native_size, allow_truncated, strict, reader=reader)

    def tracked(self, doing: str) -> Iterator[Tensor]:
        """`chunks` with a progress bar that says what one is ``doing``."""
        return track(self.chunks(), doing, self.expected_frames)


def of_readable(
    files: Sequence[Path], folder: Path, work: Callable[[Path], Result], unreadable: list[Path]
) -> Iterator[Result]:
    """``work`` of each file, with a progress bar; those that cannot be read are named, and added to ``unreadable``.

    Raises:
        CommandError: none can be read.
    """
    for path in track(files, "encoding", len(files), "videos", count=lambda path: 1):
        try:
            result = work(path)
        except VideoError as error:
            unreadable.append(path)
            say(f"left out {path}: {error}")
        else:
            yield result
    if len(unreadable) == len(files):
        raise CommandError(f"{folder} has no video that can be read, of {len(files)}")


def encode_source(model: TivTok, source: Source, tiv_sets: TivSets, refine: int = 0) -> Tokens:
    with StepsBar("refining") as bar:
        return encode_stream(model, source.tracked("encoding"), tiv_sets, source.fps, refine, bar.show)


def encode_frames(model: TivTok, frames: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk, uint8 (f, H, W, 3) -> as of `TivTok.encode_chunks`, float32 on the CPU from any model."""
    video = frames.permute(3, 0, 1, 2)[None].to(next(model.parameters()).device)
    tiv, tv = model.encode_chunks(video)
    return tiv.cpu().float(), tv.cpu().float()


def compare(model: TivTok, tokens: Tokens, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(original, reconstruction), uint8 (f, H, W, 3) each: the whole video, in pieces of one chunk and one TIV set.

    Args:
        chunks: of the original, in order.
    """
    chunks = iter(chunks)
    original = next(chunks)
    for reconstruction in decode_stream(model, tokens):
        while len(original) < len(reconstruction):  # a chunk that begins at a cut ends within another one of `chunks`
            original = torch.cat([original, next(chunks)])
        yield original[: len(reconstruction)], reconstruction
        original = original[len(reconstruction) :]


def known_rate(fps: float | None, path: Path) -> float:
    """``fps`` of the video at ``path``.

    Raises:
        CommandError: it is not known.
    """
    if fps is None:
        raise CommandError(f"{path} states no frame rate: encode it, then decode it with --fps")
    return fps
