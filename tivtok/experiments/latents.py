"""Mean and standard deviation of a checkpoint's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from tivtok.latents import STATS_FILE, LatentStats
from tivtok.model import TivTok
from tivtok.video import VideoReader, find_videos, fit, frames_to_video

out = Console(highlight=False, markup=False)


def latents(
    data: Annotated[Path, typer.Option(help="A folder of videos like those the model is for.")],
    model: Annotated[Path, typer.Option(help="The checkpoint folder; the numbers are written into it.")],
) -> None:
    """Write `latents.safetensors` beside a checkpoint, for `tivtok.latents.LatentStats`."""
    tokenizer = TivTok.from_pretrained(model)
    files = find_videos(data)
    stats = LatentStats.of(_tokens(tokenizer, files), tokenizer.model_id)
    stats.save(model)
    for name in ("tiv", "tv"):
        mean, std = getattr(stats, f"{name}_mean"), getattr(stats, f"{name}_std")
        out.print(f"{name}: |mean| {mean.abs().mean():.3f}, std {std.mean():.3f} on average, of {len(files)} videos")
    out.print(f"wrote {model / STATS_FILE}", soft_wrap=True)


def _tokens(model: TivTok, files: list[Path]) -> Iterator[tuple[Tensor, Tensor]]:
    """A TIV set for every chunk: what the encoder gives, not the means of it."""
    with torch.no_grad():
        for path in files:
            for chunk in VideoReader(path, allow_truncated=True).chunks(model.config.chunk_frames):
                yield model.encode_chunks(frames_to_video(fit(chunk, *model.config.native_size))[None])
