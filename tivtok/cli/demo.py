"""``tivtok demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tivtok.cli.inspect import write_sheet
from tivtok.cli.output import print_rows, say, score_text, token_rows
from tivtok.cli.reconstruct import write_reconstruction
from tivtok.cli.source import Source, known_rate
from tivtok.loading import load_model
from tivtok.streaming import encode_to_file
from tivtok.tokens import Tokens

CLIP = Path(__file__).parents[1] / "assets" / "bikes.mp4"


def demo(folder: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Made if it does not exist.")]) -> None:
    """Tokenise and reconstruct the bundled clip with the bundled checkpoint.

    Example: tivtok demo demo/
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_model("tiny")
    source = Source(CLIP, "native", tokenizer)
    stored = folder / f"{CLIP.stem}.tivtok"
    encode_to_file(tokenizer, source.tracked("encoding"), stored, "auto", fps=source.fps, dtype="float16")
    tokens = Tokens.open(stored)
    rate = known_rate(source.fps, CLIP)
    together = folder / "side_by_side.mp4"
    scores = write_reconstruction(tokenizer, tokens, source, together, rate, beside=True, audio=False)
    write_sheet(tokenizer, tokens, source, folder / "contact_sheet.png", columns=8)
    print_rows(
        token_rows(tokens, stored.stat().st_size) | {"quality": score_text(*scores)}, f"Token budget of {CLIP.name}"
    )
    say(f"wrote {stored}, {together}, {folder / 'contact_sheet.png'}")
