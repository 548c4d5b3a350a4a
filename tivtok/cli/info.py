"""``tivtok info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tivtok.video as video
from tivtok.cli.output import CommandError, print_rows, rate_rows, token_rows
from tivtok.tokens import Tokens, TokensError


def info(file: Annotated[Path, typer.Argument(metavar="FILE", help="A token file or a video.")]) -> None:
    """Show what a file holds.

    Example: tivtok info clip.tivtok
    """
    try:
        tokens = Tokens.open(file)
        rows = token_rows(tokens, file.stat().st_size) | rate_rows(tokens)
    except TokensError as error:
        if file.suffix == ".tivtok":
            raise
        rows = _video_rows(file, error)
    print_rows({"file": str(file)} | rows)


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
