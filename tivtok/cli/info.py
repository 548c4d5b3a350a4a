"""``tivtok info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tivtok.video as video
from tivtok.cli.output import CommandError, print_rows, rate_rows, token_rows
from tivtok.model.config import TivTokConfig
from tivtok.tokens import Tokens, TokensError


def info(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A token file or a video.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Instead of a file: a preset's tokens and rates, as the paper counts them.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Of the video, with --preset.")] = 128,
) -> None:
    """Show what a file holds, or what a preset makes of a video.

    Example: tivtok info clip.tivtok

    Example: tivtok info --preset t128 --frames 128
    """
    if preset is not None and file is None:
        print_rows(budget_rows(TivTokConfig.preset(preset), frames))
    elif file is not None and preset is None:
        print_rows(_file_rows(file))
    else:
        raise CommandError("info is of a FILE or of a --preset, one of them")


def budget_rows(config: TivTokConfig, frames: int) -> dict[str, str]:
    """Tokens and rates of a video of ``frames`` frames, by the number of TIV sets (paper Tables 1, 2, 4 and 5)."""
    height, width = config.native_size
    groups, chunks = config.num_groups(frames), -(-frames // config.chunk_frames)
    rows = {
        "preset": f"{config.name}: {config.num_tiv} TIV tokens in a set, {config.num_tv} TV tokens for each frame "
        f"group of {config.frames_per_group} frames, {config.latent_dim} values each",
        "video": f"{frames} frames of {width}x{height}: {chunks} chunks, {groups} frame groups",
    }
    sets = chunks
    while sets:
        rate = config.compression_rate(frames, height, width, sets)
        tokens = f"{config.num_tokens(frames, sets)} tokens ({sets} x {config.num_tiv} + {groups} x {config.num_tv})"
        rows[f"{sets} TIV set{'s' if sets > 1 else ''}"] = f"{tokens}, {rate:.3%} of the video's values"
        sets //= 2
    one, own = config.num_tokens(frames), config.num_tokens(frames, chunks)
    patches = groups * -(-height // config.patch[1]) * -(-width // config.patch[2])
    return rows | {
        "saved by reuse": f"{own / one:.2f}x = {own} / {one}: tokens with a TIV set for each chunk over tokens with "
        "one set, of the same model",
        "of a dense grid": f"{one / patches:.1%} = {one} / {patches}: tokens with one set over one token for each "
        f"patch of {' x '.join(map(str, config.patch))}, which is what CV-VAE has; tokens, not values",
    }


def _file_rows(file: Path) -> dict[str, str]:
    try:
        tokens = Tokens.open(file)
        stored = file.stat().st_size
        rows = token_rows(tokens, stored) | rate_rows(tokens, stored)
    except TokensError as error:
        if file.suffix == ".tivtok":
            raise
        rows = _video_rows(file, error)
    return {"file": str(file)} | rows


def _video_rows(file: Path, not_tokens: Exception) -> dict[str, str]:
    try:
        reader = video.VideoReader(file)
    except video.VideoError as not_video:
        raise CommandError(f"{not_tokens}; and as a video: {not_video}") from None
    return {
        "video": f"{reader.width}x{reader.height}",
        "frames": f"{reader.expected_frames}, by its packets",
        "fps": "unknown" if reader.fps is None else f"{float(reader.fps):g}",
    }
