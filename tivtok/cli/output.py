"""Output of a command: tables, lines, progress; and checks before a file is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from torch import Tensor

from tivtok.files import missing_hint, printable
from tivtok.tokens import Tokens
from tivtok.video.find import LeftOut, summary

Item = TypeVar("Item")

_console = Console(highlight=False, markup=False)
_progress_console = Console(stderr=True)


class CommandError(ValueError):
    """A command that cannot be carried out; the message says why."""


def warn(message: str) -> None:
    """Print one line on stderr, nothing for an empty message."""
    if message:
        print("tivtok: warning: " + " ".join(message.split()), file=sys.stderr)


def track(
    items: Iterable[Item], doing: str, total: int | None, unit: str = "frames", count: Callable[[Any], int] = len
) -> Iterator[Item]:
    """Pass ``items`` on, with a bar on stderr that counts their ``unit`` where stderr is a terminal."""
    with _bar(unit) as progress:
        task = progress.add_task(doing, total=total)
        for item in items:
            yield item
            progress.advance(task, count(item))


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.1f}/s")


def _bar(unit: str) -> Progress:
    """A bar on stderr: how many ``unit`` of how many, how many per second, time gone and time left.

    Nothing where stderr is no terminal.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), _Rate())
    return Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_progress_console,
        transient=True,
        disable=not _progress_console.is_terminal,
    )


class StepsBar:
    """A bar of steps on stderr, where that is a terminal; it appears with the first step, for a ``with`` block."""

    def __init__(self, doing: str) -> None:
        self._progress = _bar("steps")
        self._task = self._progress.add_task(doing, total=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        """Say that so many of ``total`` steps are done."""
        self._progress.start()
        self._progress.update(self._task, completed=done, total=total)


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
    videos, sets, _, latent_dim = tokens.tiv.shape
    groups = tokens.tv.shape[1]
    of_each, of_kind = [], [sets * tokens.tiv.shape[2], groups * tokens.tv.shape[2]]
    for x, numbers in zip((tokens.tiv, tokens.tv), tokens.counts or (None, None), strict=True):
        low, high = (x.shape[2],) * 2 if numbers is None else (min(numbers), max(numbers))
        of_each.append(f"{low}" if low == high else f"{low} to {high}")
    if tokens.counts is not None:
        of_kind = [sum(numbers) for numbers in tokens.counts]
    rate = "" if tokens.fps is None else f", {tokens.fps:g} per second"
    raw_bytes = 3 * tokens.num_frames * tokens.height * tokens.width
    stored = {} if stored_bytes is None else _bytes_row(stored_bytes, videos * raw_bytes)
    return {
        "video": (f"{videos} of " if videos > 1 else "")
        + f"{tokens.num_frames} frames of {tokens.width}x{tokens.height}{rate}",
        "TIV tokens": f"{sets} set{'s' if sets > 1 else ''} of {of_each[0]} = {of_kind[0]}",
        "TV tokens": f"{groups} frame groups of {of_each[1]} = {of_kind[1]}",
        "tokens": f"{tokens.num_tokens}, of {latent_dim} values each",
        "values": f"{tokens.num_values:,}, {tokens.compression_rate:.3%} of the video's {raw_bytes:,} values",
        **stored,
        "model": f"{tokens.preset}, id {tokens.model_id}",
    }


def _bytes_row(stored_bytes: int, raw_bytes: int) -> dict[str, str]:
    return {"bytes": f"{stored_bytes:,} in the file, {stored_bytes / raw_bytes:.3%} of 8-bit RGB"}


def rate_rows(tokens: Tokens, stored_bytes: int | None = None) -> dict[str, str]:
    """Tokens and bytes per second of a video, for `print_rows`; of the file that holds them, if there is one."""
    if tokens.fps is None:
        return {"per second": "unknown, the video states no frame rate"}
    per_second = tokens.fps / tokens.num_frames
    if stored_bytes is None:
        stored = f"{2 * tokens.num_values * per_second:,.0f} bytes as float16"
    else:
        stored = f"{stored_bytes / tokens.tiv.shape[0] * per_second:,.0f} bytes in the file"
    return {"per second": f"{tokens.num_tokens * per_second:.1f} tokens, {stored}"}


def score_text(psnr: Tensor, ssim: Tensor) -> str:
    """Mean of per-frame scores (F,)."""
    return f"PSNR {psnr.mean():.2f} dB, SSIM {ssim.mean():.4f} (mean of {len(psnr)} frames)"
