"""``tivtok inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from tivtok.cli.options import (
    DeviceOption,
    ModelOption,
    Precision,
    PrecisionOption,
    RefineOption,
    SizeOption,
    StrictOption,
    TivSetsOption,
    TruncatedOption,
    VideoIn,
    parse_tiv_sets,
)
from tivtok.cli.output import CommandError, check_output, rate_rows, say, score_text, token_rows, warn
from tivtok.cli.source import Source, encode_source
from tivtok.editing import grey_tokens, tiv_only
from tivtok.loading import load_model
from tivtok.metrics import psnr, ssim
from tivtok.model.patchify import patch_grid
from tivtok.streaming import decode_stream
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import fit
from tivtok.views.page import write_page
from tivtok.views.pictures import (
    DIFFERENCE_GAIN,
    added,
    contact_sheet,
    difference,
    enlarge,
    scale_to_see,
    scope_picture,
)

LARGEST_SHOWN = 256  # pixels of a picture's height in a contact sheet
LARGEST_SCOPE = 1024  # tokens a side of a picture of who sees whom


def inspect(
    video: VideoIn,
    picture: Annotated[Path, typer.Argument(metavar="OUT", help="The contact sheet (.png) or page (.html) to write.")],
    columns: Annotated[int, typer.Option(min=1, max=64, help="How many frames, evenly spaced.")] = 8,
    model: ModelOption = "tiny",
    size: SizeOption = "source",
    tiv_sets: TivSetsOption = "1",
    refine: RefineOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    allow_truncated: TruncatedOption = False,
    strict: StrictOption = False,
) -> None:
    """Show what the tokens hold, as a contact sheet or a page.

    Some frames reconstructed, from TIV or TV tokens only, and compared; TIV sets over time.

    Example: tivtok inspect clip.mp4 page.html --tiv-sets auto
    """
    check_output(picture, video)
    if picture.suffix.lower() not in (".png", ".html"):
        raise CommandError(f"OUT must end in .png or .html, got {picture}")
    sets = parse_tiv_sets(tiv_sets)
    tokenizer = load_model(model, device, precision)
    source = Source(video, size, tokenizer, allow_truncated, strict)
    tokens = encode_source(tokenizer, source, sets, refine)
    scores = write_sheet(tokenizer, tokens, source, picture, columns)
    say(f"wrote {picture}: {tokens.num_tokens} tokens, {scores}")
    warn(source.damage())


def write_sheet(tokenizer: TivTok, tokens: Tokens, source: Source, picture: Path, columns: int) -> str:
    """Write a contact sheet or page of ``columns`` evenly spaced frames; returns their scores as a line of text."""
    shown = torch.linspace(0, tokens.num_frames - 1, min(columns, tokens.num_frames)).round().int().tolist()
    rows = _rows(tokenizer, tokens, _pick(source, shown), shown)
    scores = score_text(*(metric(rows["reconstruction"], rows["original"]) for metric in (psnr, ssim)))
    rows = {label: _reduce(frames) for label, frames in rows.items()}
    scale = scale_to_see(source.height, source.width)
    labels = [f"frame {i}" for i in shown]
    if picture.suffix.lower() == ".html":
        facts = token_rows(tokens) | rate_rows(tokens) | {"shown frames": scores}
        rows = {label: enlarge(frames, scale) for label, frames in rows.items()}
        write_page(picture, source.path.name, facts, rows, labels, tokens.tiv_index, _scopes(tokenizer, source))
    else:
        title = (
            f"{source.path.name}, {source.width}x{source.height}: {tokens.num_tokens} tokens of "
            f"{tokens.tiv.shape[3]} values for {tokens.num_frames} frames; {scores}"
        )
        contact_sheet(picture, rows, labels, title, scale, tokens.tiv_index)
    return scores


def _rows(tokenizer: TivTok, tokens: Tokens, original: Tensor, shown: list[int]) -> dict[str, Tensor]:
    def decode(some: Tokens) -> Tensor:
        return torch.cat(list(decode_stream(tokenizer, some, shown)))

    grey = grey_tokens(tokenizer, tokens.height, tokens.width).to("cpu")
    reconstruction, alone = decode(tokens), decode(tiv_only(tokens, grey))
    return {
        "original": original,
        "reconstruction": reconstruction,
        "TIV only": alone,
        "TV adds": added(reconstruction, alone),
        f"difference x{DIFFERENCE_GAIN}": difference(reconstruction, original),
    }


def _scopes(tokenizer: TivTok, source: Source) -> dict[str, Tensor]:
    """The masks of one chunk of a video of this size; large ones with one token of several."""
    config = tokenizer.config
    groups, rows, columns = patch_grid(config.chunk_frames, source.height, source.width, config.patch)
    frame_tokens = config.num_tv + rows * columns
    every = -(-(config.num_tiv + groups * frame_tokens) // LARGEST_SCOPE)
    sizes = (-(-config.num_tiv // every), groups, -(-frame_tokens // every))
    note = "" if every == 1 else f", one token of {every} shown"
    return {
        f"encoder: TIV tokens see the chunk{note}": scope_picture(*sizes, "clip"),
        f"shared decoder: TIV tokens see one another{note}": scope_picture(*sizes, "tiv"),
    }


def _pick(source: Source, indices: list[int]) -> Tensor:
    """The frames ``indices`` (ascending) of a source, uint8 (n, H, W, 3)."""
    picked, start = [], 0
    for chunk in source.tracked("reading"):
        picked += [chunk[i - start] for i in indices if start <= i < start + len(chunk)]
        start += len(chunk)
    return torch.stack(picked)


def _reduce(frames: Tensor) -> Tensor:
    """Frames for a contact sheet, at most `LARGEST_SHOWN` high."""
    height, width = frames.shape[1:3]
    if height <= LARGEST_SHOWN:
        return frames
    return fit(frames, LARGEST_SHOWN, max(1, round(width * LARGEST_SHOWN / height)))
