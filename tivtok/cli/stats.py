"""`tivtok stats`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from tivtok.cli.options import StrictOption
from tivtok.cli.output import say, track, warn
from tivtok.loading import load_model
from tivtok.tokenizer import TivTok
from tivtok.tokens.statistics import STATS_FILE, LatentStats
from tivtok.video import VideoReader, find_videos, fit, frames_to_video


def stats(
    data: Annotated[Path, typer.Argument(help="Folder of videos like those the model is for.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Checkpoint folder; the numbers are written into it.")],
    strict: StrictOption = False,
) -> None:
    """Measure mean and standard deviation of a checkpoint's tokens, written beside it for `tivtok.tokens.LatentStats`.

    Example: tivtok stats clips/ --model runs/mine
    """
    tokenizer = load_model(str(model), "cpu")
    files = find_videos(data)
    tracked = track(files, "encoding", len(files), "videos", count=lambda path: 1)
    statistics = LatentStats.of(
        (pair for path in tracked for pair in _tokens(tokenizer, path, strict)), tokenizer.model_id
    )
    statistics.save(model)
    for name in ("tiv", "tv"):
        mean, std = getattr(statistics, f"{name}_mean"), getattr(statistics, f"{name}_std")
        say(f"{name}: |mean| {mean.abs().mean():.3f}, std {std.mean():.3f} on average, of {len(files)} videos")
    say(f"wrote {model / STATS_FILE}")


def _tokens(model: TivTok, path: Path, strict: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The TIV set of every chunk, as the encoder gives it, and the chunk's TV tokens."""
    with torch.no_grad():
        reader = VideoReader(path, allow_truncated=True, strict=strict)
        height, width = model.config.native_size
        for chunk in reader.chunks(model.config.chunk_frames, change=partial(fit, height=height, width=width)):
            yield model.encode_chunks(frames_to_video(chunk)[None])
    warn(reader.damage())
