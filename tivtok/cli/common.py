"""What the commands share: their options, the model, the source video, progress and output."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tivtok.files import missing_hint, printable

if TYPE_CHECKING:
    from torch import Tensor

    from tivtok.chunks.sharing import TivSets
    from tivtok.tokenizer import TivTok
    from tivtok.tokens import Tokens
    from tivtok.video import LeftOut

Item = TypeVar("Item")

_console = Console(highlight=False, markup=False)
_progress_console = Console(stderr=True)

ModelOption = Annotated[
    str,
    typer.Option("--model", help="A bundled checkpoint's name, a checkpoint folder, or a Hugging Face repository."),
]
DeviceOption = Annotated[str, typer.Option("--device", help='"auto" (the GPU where there is one), "cpu" or "cuda".')]
SizeOption = Annotated[
    str,
    typer.Option(
        "--size", help='"source", "native" (what the model was trained at) or WIDTHxHEIGHT; the centre is cut to fit.'
    ),
]
TivSetsOption = Annotated[
    str,
    typer.Option(
        "--tiv-sets",
        metavar="N|auto",
        help="TIV sets shared by the chunks: 1 is full reuse, one per chunk none; auto: one where content changes.",
    ),
]
TruncatedOption = Annotated[
    bool, typer.Option("--allow-truncated", help="Take what can be read of a file that ends early.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail where a decoder has made up for damage, instead of a warning at the end.")
]


class CommandError(ValueError):
    """A command that cannot be carried out; the message says why."""


class Source:
    """A video file at the size asked for, read a chunk at a time and as often as needed.

    Attributes:
        height, width: of the frames as they come.
        fps: frames per second, or None.
    """

    def __init__(
        self, path: Path, size: str, model: TivTok, allow_truncated: bool = False, strict: bool = False
    ) -> None:
        from tivtok.video import VideoReader

        self.path = path
        self.chunk_frames = model.config.chunk_frames
        self._reader = VideoReader(path, allow_truncated, strict=strict)
        self.fps = None if self._reader.fps is None else float(self._reader.fps)
        self.height, self.width = _parse_size(size, (self._reader.height, self._reader.width), model.config.native_size)

    def chunks(self, doing: str) -> Iterator[Tensor]:
        """`plain_chunks` with a progress bar that says what one is ``doing``."""
        return track(self.plain_chunks(), doing, self._reader.expected_frames)

    def plain_chunks(self) -> Iterator[Tensor]:
        """uint8 (f, H, W, 3) of ``chunk_frames`` frames each, the last may be shorter."""
        from tivtok.video import fit

        return (fit(chunk, self.height, self.width) for chunk in self._reader.chunks(self.chunk_frames))

    def damage(self) -> str:
        """Of what was read last, in a line; empty where nothing is damaged."""
        return self._reader.damage()


def warn(message: str) -> None:
    """One line on stderr, nothing for an empty message."""
    if message:
        print("tivtok: warning: " + " ".join(message.split()), file=sys.stderr)


def load_model(path_or_name: str, device: str) -> TivTok:
    import torch

    from tivtok.tokenizer import TivTok

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch has all of these for one that is not there
        raise CommandError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    return TivTok.from_pretrained(path_or_name).to(device)


def parse_tiv_sets(text: str) -> TivSets:
    """--tiv-sets -> its value.

    Raises:
        CommandError: it is neither a number nor "auto".
    """
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise CommandError(f'--tiv-sets must be a whole number from 1 or "auto", got "{text}"')
    return int(text)


def encode_source(model: TivTok, source: Source, tiv_sets: TivSets) -> Tokens:
    from tivtok.streaming import encode_stream

    return encode_stream(model, source.chunks("encoding"), tiv_sets, source.fps)


def compare(model: TivTok, tokens: Tokens, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(original, reconstruction), uint8 (f, H, W, 3) each: the whole video, in pieces of one chunk and one TIV set.

    Args:
        chunks: of the original, in order.
    """
    import torch

    from tivtok.streaming import decode_stream

    chunks = iter(chunks)
    original = next(chunks)
    for reconstruction in decode_stream(model, tokens):
        while len(original) < len(reconstruction):  # a chunk that begins at a cut ends within another one of `chunks`
            original = torch.cat([original, next(chunks)])
        yield original[: len(reconstruction)], reconstruction
        original = original[len(reconstruction) :]


def track(
    items: Iterable[Item], doing: str, total: int | None, unit: str = "frames", count: Callable[[Any], int] = len
) -> Iterator[Item]:
    """Pass ``items`` on, with a bar on stderr that counts their ``unit`` where stderr is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_progress_console,
        transient=True,
        disable=not _progress_console.is_terminal,
    ) as progress:
        task = progress.add_task(doing, total=total)
        for item in items:
            yield item
            progress.advance(task, count(item))


def check_output(path: Path, source: Path | None = None) -> None:
    """Find out before the work, not after it, that ``path`` cannot be written.

    Raises:
        CommandError: it is a folder or a device, in no folder, in one that is not writable, or the input itself; or
            "-", which means standard output elsewhere.
    """
    if str(path) == "-":
        raise CommandError(f"cannot write {path}{missing_hint(path)}")
    if path.exists() and not path.is_file():
        raise CommandError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'not a regular file'}")
    if not path.parent.is_dir():
        raise CommandError(f"cannot write {path}: the folder {path.parent} does not exist{missing_hint(path)}")
    if not os.access(path.parent, os.W_OK):
        raise CommandError(f"cannot write {path}: the folder {path.parent} is not writable")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise CommandError(f"cannot write {path}: it is the input")


def say(text: str) -> None:
    """Print one line on stdout, whatever is in it."""
    _print(printable(text))


def say_left_out(left_out: Sequence[LeftOut]) -> None:
    """Say how many files were left out, and why."""
    from tivtok.video.find import summary

    for line in summary(left_out):
        say(line)


def print_rows(rows: dict[str, str], title: str | None = None) -> None:
    """A two-column table on stdout."""
    table = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(printable(value)))
    _print(table)


def _print(what: str | Table) -> None:
    """
    Raises:
        CommandError: stdout cannot be written to (a full disk behind it, say).
    """
    try:
        _console.print(what, soft_wrap=isinstance(what, str))
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python would try to write what is left when it ends)
        raise CommandError(f"standard output: {error.strerror}") from None


def token_rows(tokens: Tokens, stored_bytes: int | None = None) -> dict[str, str]:
    """The token budget, for `print_rows`. ``stored_bytes``: of the file that holds the tokens, if there is one."""
    videos, sets, num_tiv, latent_dim = tokens.tiv.shape
    groups, num_tv = tokens.tv.shape[1:3]
    rate = "" if tokens.fps is None else f", {tokens.fps:g} per second"
    raw_bytes = 3 * tokens.num_frames * tokens.height * tokens.width
    stored = {} if stored_bytes is None else _bytes_row(stored_bytes, videos * raw_bytes)
    return {
        "video": (f"{videos} of " if videos > 1 else "")
        + f"{tokens.num_frames} frames of {tokens.width}x{tokens.height}{rate}",
        "TIV tokens": f"{sets} set{'s' if sets > 1 else ''} of {num_tiv} = {sets * num_tiv}",
        "TV tokens": f"{groups} frame groups of {num_tv} = {groups * num_tv}",
        "tokens": f"{tokens.num_tokens}, of {latent_dim} values each",
        "values": f"{tokens.num_values:,}, {tokens.compression_rate:.3%} of the video's {raw_bytes:,} values",
        **stored,
        "model": f"{tokens.preset}, id {tokens.model_id}",
    }


def _bytes_row(stored_bytes: int, raw_bytes: int) -> dict[str, str]:
    return {"bytes": f"{stored_bytes:,} in the file, {stored_bytes / raw_bytes:.3%} of 8-bit RGB"}


def rate_rows(tokens: Tokens) -> dict[str, str]:
    """Tokens and bytes per second of a video, for `print_rows`."""
    if tokens.fps is None:
        return {"per second": "unknown, the video states no frame rate"}
    per_second = tokens.fps / tokens.num_frames
    stored = 2 * tokens.num_values * per_second
    return {"per second": f"{tokens.num_tokens * per_second:.1f} tokens, {stored:,.0f} bytes as float16"}


def score_text(psnr: Tensor, ssim: Tensor) -> str:
    """Mean of per-frame scores (F,)."""
    return f"PSNR {psnr.mean():.2f} dB, SSIM {ssim.mean():.4f} (mean of {len(psnr)} frames)"


def parse_frames(text: str, num_frames: int) -> list[int]:
    """ "A:B", "A:", ":B" or "A", or several of them with commas -> the frames meant, in the order given.

    Raises:
        CommandError: it is none of these, or not a part of 0..num_frames.
    """
    frames: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{0,9})(:?)(\d{0,9})", part)
        first, colon, last = match.groups() if match and part not in ("", ":") else ("", "", "")
        start = int(first or 0)
        stop = (int(last) if last else num_frames) if colon else start + 1
        if not (first or colon) or not start < stop <= num_frames:
            raise CommandError(f'--frames must be A:B (or several) with 0 <= A < B <= {num_frames}, got "{text}"')
        frames += range(start, stop)
    return frames


def _parse_size(text: str, source: tuple[int, int], native: tuple[int, int]) -> tuple[int, int]:
    """--size -> (height, width)."""
    if text in ("source", "native"):
        return source if text == "source" else native
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise CommandError(f'--size must be "source", "native" or WIDTHxHEIGHT such as 256x192, got "{text}"')
    return int(match[2]), int(match[1])
