"""The model and the source video of a command: loading, encoding, comparing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tivtok.chunks.sharing import TivSets
from tivtok.cli.options import parse_size
from tivtok.cli.output import CommandError, track
from tivtok.streaming import decode_stream, encode_stream
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoReader, fit


class Source:
    """A video file at the size asked for, read a chunk at a time and as often as needed.

    Attributes:
        height, width: of the frames as they come.
        fps: frames per second, or None.
    """

    def __init__(
        self, path: Path, size: str, model: TivTok, allow_truncated: bool = False, strict: bool = False
    ) -> None:
        self.path = path
        self.chunk_frames = model.config.chunk_frames
        self._reader = VideoReader(path, allow_truncated, strict=strict)
        self.fps = None if self._reader.fps is None else float(self._reader.fps)
        self.height, self.width = parse_size(size, (self._reader.height, self._reader.width), model.config.native_size)

    def chunks(self, doing: str) -> Iterator[Tensor]:
        """`plain_chunks` with a progress bar that says what one is ``doing``."""
        return track(self.plain_chunks(), doing, self._reader.expected_frames)

    def plain_chunks(self) -> Iterator[Tensor]:
        """uint8 (f, H, W, 3) of ``chunk_frames`` frames each, the last may be shorter."""
        return (fit(chunk, self.height, self.width) for chunk in self._reader.chunks(self.chunk_frames))

    def damage(self) -> str:
        """Damage in what was read last, as one line; empty where there is none."""
        return self._reader.damage()


def load_model(path_or_name: str, device: str) -> TivTok:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch has all of these for one that is not there
        raise CommandError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    return TivTok.from_pretrained(path_or_name).to(device)


def encode_source(model: TivTok, source: Source, tiv_sets: TivSets) -> Tokens:
    return encode_stream(model, source.chunks("encoding"), tiv_sets, source.fps)


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
