"""``tivtok info`` and ``tivtok inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tivtok.cli.codec import VideoIn
from tivtok.cli.common import (
    CommandError,
    DeviceOption,
    ModelOption,
    SizeOption,
    Source,
    StrictOption,
    TivSetsOption,
    TruncatedOption,
    check_output,
    encode_source,
    load_model,
    parse_tiv_sets,
    print_rows,
    rate_rows,
    say,
    score_text,
    token_rows,
    warn,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tivtok.tokenizer import TivTok
    from tivtok.tokens import Tokens

LARGEST_SHOWN = 256  # pixels of a picture's height in a contact sheet
LARGEST_SCOPE = 1024  # tokens a side of a picture of who sees whom


def info(file: Annotated[Path, typer.Argument(metavar="FILE", help="A token file or a video.")]) -> None:
    """What a file holds.

    Example: tivtok info clip.tivtok
    """
    from tivtok.tokens import Tokens, TokensError

    try:
        tokens = Tokens.open(file)
        rows = token_rows(tokens, file.stat().st_size) | rate_rows(tokens)
    except TokensError as error:
        if file.suffix == ".tivtok":
            raise
        rows = _video_rows(file, error)
    print_rows({"file": str(file)} | rows)


def inspect(
    video: VideoIn,
    picture: Annotated[Path, typer.Argument(metavar="OUT", help="The contact sheet (.png) or page (.html) to write.")],
    columns: Annotated[int, typer.Option(min=1, max=64, help="How many frames, evenly spaced.")] = 8,
    model: ModelOption = "tiny",
    size: SizeOption = "source",
    tiv_sets: TivSetsOption = "1",
    device: DeviceOption = "auto",
    allow_truncated: TruncatedOption = False,
    strict: StrictOption = False,
) -> None:
    """What the tokens hold: some frames reconstructed, from TIV or TV tokens only, and compared; TIV sets over time.

    Example: tivtok inspect clip.mp4 page.html --tiv-sets auto
    """
    check_output(picture, video)
    if picture.suffix.lower() not in (".png", ".html"):
        raise CommandError(f"OUT must end in .png or .html, got {picture}")
    sets = parse_tiv_sets(tiv_sets)
    tokenizer = load_model(model, device)
    source = Source(video, size, tokenizer, allow_truncated, strict)
    tokens = encode_source(tokenizer, source, sets)
    scores = write_sheet(tokenizer, tokens, source, picture, columns)
    say(f"wrote {picture}: {tokens.num_tokens} tokens, {scores}")
    warn(source.damage())


def write_sheet(tokenizer: TivTok, tokens: Tokens, source: Source, picture: Path, columns: int) -> str:
    """Write a contact sheet or page of ``columns`` evenly spaced frames; returns their scores as a line of text."""
    import torch

    from tivtok.metrics import psnr, ssim
    from tivtok.views.page import write_page
    from tivtok.views.pictures import contact_sheet, enlarge, scale_to_see

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
    import torch

    from tivtok.editing import grey_tokens, tiv_only, tv_only
    from tivtok.streaming import decode_stream
    from tivtok.views.pictures import DIFFERENCE_GAIN, difference

    def decode(some: Tokens) -> Tensor:
        return torch.cat(list(decode_stream(tokenizer, some, shown)))

    grey = grey_tokens(tokenizer, tokens.height, tokens.width).to("cpu")
    reconstruction = decode(tokens)
    return {
        "original": original,
        "reconstruction": reconstruction,
        "TIV only": decode(tiv_only(tokens, grey)),
        "TV only": decode(tv_only(tokens, grey)),
        f"difference x{DIFFERENCE_GAIN}": difference(reconstruction, original),
    }


def _scopes(tokenizer: TivTok, source: Source) -> dict[str, Tensor]:
    """The masks of one chunk of a video of this size; large ones with one token of several."""
    from tivtok.model.patchify import patch_grid
    from tivtok.views.pictures import scope_picture

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
    import torch

    picked, start = [], 0
    for chunk in source.chunks("reading"):
        picked += [chunk[i - start] for i in indices if start <= i < start + len(chunk)]
        start += len(chunk)
    return torch.stack(picked)


def _reduce(frames: Tensor) -> Tensor:
    """Frames for a contact sheet, at most `LARGEST_SHOWN` high."""
    from tivtok.video import fit

    height, width = frames.shape[1:3]
    if height <= LARGEST_SHOWN:
        return frames
    return fit(frames, LARGEST_SHOWN, max(1, round(width * LARGEST_SHOWN / height)))


def _video_rows(file: Path, not_tokens: Exception) -> dict[str, str]:
    from tivtok.video import VideoError, VideoReader

    try:
        reader = VideoReader(file)
    except VideoError as not_video:
        raise CommandError(f"{not_tokens}; and as a video: {not_video}") from None
    return {
        "video": f"{reader.width}x{reader.height}",
        "frames": f"{reader.expected_frames}, by its packets",
        "fps": "unknown" if reader.fps is None else f"{float(reader.fps):g}",
    }
