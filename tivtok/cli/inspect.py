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
    TivSetsOption,
    TruncatedOption,
    check_output,
    encode_source,
    load_model,
    out,
    print_rows,
    score_text,
    token_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tivtok.model import TivTok
    from tivtok.tokens import Tokens

LARGEST_SHOWN = 256  # pixels of a picture's height in a contact sheet


def info(file: Annotated[Path, typer.Argument(metavar="FILE", help="A token file or a video.")]) -> None:
    """What a file holds.

    Example: tivtok info clip.tivtok
    """
    from tivtok.tokens import Tokens, TokensError

    try:
        rows = token_rows(Tokens.open(file), file.stat().st_size)
    except TokensError as error:
        if file.suffix == ".tivtok":
            raise
        rows = _video_rows(file, error)
    print_rows({"file": str(file)} | rows)


def inspect(
    video: VideoIn,
    picture: Annotated[Path, typer.Argument(metavar="OUT.png", help="The contact sheet to write.")],
    columns: Annotated[int, typer.Option(min=1, max=64, help="How many frames, evenly spaced.")] = 8,
    model: ModelOption = "tiny",
    size: SizeOption = "source",
    tiv_sets: TivSetsOption = 1,
    device: DeviceOption = "auto",
    allow_truncated: TruncatedOption = False,
) -> None:
    """Original, reconstruction and difference of some frames.

    Example: tivtok inspect clip.mp4 sheet.png
    """
    check_output(picture, video)
    if picture.suffix.lower() != ".png":
        raise CommandError(f"OUT must end in .png, got {picture}")
    tokenizer = load_model(model, device)
    source = Source(video, size, tokenizer, allow_truncated)
    tokens = encode_source(tokenizer, source, tiv_sets)
    scores = write_sheet(tokenizer, tokens, source, picture, columns)
    out.print(f"wrote {picture}: {tokens.num_tokens} tokens, {scores}", soft_wrap=True)


def write_sheet(tokenizer: TivTok, tokens: Tokens, source: Source, picture: Path, columns: int) -> str:
    """Write a contact sheet of ``columns`` evenly spaced frames; returns their scores as a line of text."""
    import torch

    from tivtok.metrics import psnr, ssim
    from tivtok.pictures import DIFFERENCE_GAIN, contact_sheet, difference, scale_to_see
    from tivtok.streaming import decode_stream

    shown = torch.linspace(0, tokens.num_frames - 1, min(columns, tokens.num_frames)).round().int().tolist()
    original = _pick(source, shown)
    reconstruction = torch.cat(list(decode_stream(tokenizer, tokens, shown)))
    scores = score_text(psnr(reconstruction, original), ssim(reconstruction, original))
    rows = {
        "original": original,
        "reconstruction": reconstruction,
        f"difference x{DIFFERENCE_GAIN}": difference(reconstruction, original),
    }
    contact_sheet(
        picture,
        {label: _reduce(frames) for label, frames in rows.items()},
        labels=[f"frame {i}" for i in shown],
        title=f"{source.path.name}, {source.width}x{source.height}: {tokens.num_tokens} tokens of "
        f"{tokens.tiv.shape[3]} values for {tokens.num_frames} frames; {scores}",
        scale=scale_to_see(source.height, source.width),
    )
    return scores


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
        "frames": "unknown" if reader.expected_frames is None else f"{reader.expected_frames}, as its header says",
        "fps": "unknown" if reader.fps is None else f"{float(reader.fps):g}",
    }
