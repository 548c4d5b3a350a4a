"""`tivtok stats`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from tivtok.cli.options import DeviceOption, Precision, PrecisionOption, StrictOption
from tivtok.cli.output import CommandError, say, say_left_out, warn
from tivtok.cli.source import Source, encode_frames, of_readable
from tivtok.loading import load_model
from tivtok.tokenizer import TivTok
from tivtok.tokens.statistics import STATS_FILE, LatentStats
from tivtok.video import search_folder


def stats(
    data: Annotated[Path, typer.Argument(help="Folder of videos like those the model is for.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Checkpoint folder; the numbers are written into it.")],
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    strict: StrictOption = False,
) -> None:
    """Measure mean and standard deviation of a checkpoint's tokens, written beside it for `tivtok.tokens.LatentStats`.

    Example: tivtok stats clips/ --model runs/mine
    """
    tokenizer = load_model(str(model), device, precision)
    files, left_out = search_folder(data)
    unreadable: list[Path] = []
    of_each = of_readable(files, data, lambda path: _tokens(tokenizer, path, strict), unreadable)
    statistics = LatentStats.of(chain.from_iterable(of_each), tokenizer.model_id)
    statistics.save(model)
    counted = len(files) - len(unreadable)
    for name in ("tiv", "tv"):
        mean, std = getattr(statistics, f"{name}_mean"), getattr(statistics, f"{name}_std")
        say(f"{name}: |mean| {mean.abs().mean():.3f}, std {std.mean():.3f} on average, of {counted} videos")
    say(f"wrote {model / STATS_FILE}")
    say_left_out(left_out)
    if unreadable:
        raise CommandError(f"{len(unreadable)} of {len(files)} videos could not be read")


def _tokens(model: TivTok, path: Path, strict: bool) -> list[tuple[Tensor, Tensor]]:
    """The TIV set of every chunk, as the encoder gives it, and the chunk's TV tokens.

    Raises:
        VideoError: the video cannot be read, or all of it with ``strict``: nothing of it is counted then.
    """
    source = Source(path, "native", model, allow_truncated=True, strict=strict)
    with torch.no_grad():
        pairs = [encode_frames(model, chunk) for chunk in source.chunks()]
    warn(source.damage())
    return pairs
