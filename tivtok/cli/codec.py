"""``tivtok encode``, ``decode`` and ``reconstruct``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    compare,
    encode_source,
    load_model,
    parse_frames,
    parse_tiv_sets,
    print_rows,
    say,
    score_text,
    token_rows,
    track,
    warn,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tivtok.tokenizer import TivTok
    from tivtok.tokens import Tokens

VideoIn = Annotated[Path, typer.Argument(metavar="IN", help="A video that FFmpeg can read.")]
VideoOut = Annotated[Path, typer.Argument(metavar="OUT", help="The video to write: .mp4, .mkv or .mov, H.264.")]


class StoredDtype(StrEnum):
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def encode(
    video: VideoIn,
    tokens_file: Annotated[Path, typer.Argument(metavar="OUT", help="The token file to write, e.g. clip.tivtok.")],
    model: ModelOption = "tiny",
    size: SizeOption = "source",
    tiv_sets: TivSetsOption = "1",
    dtype: Annotated[StoredDtype, typer.Option(help="How token values are stored.")] = StoredDtype.FLOAT16,
    device: DeviceOption = "auto",
    allow_truncated: TruncatedOption = False,
    strict: StrictOption = False,
) -> None:
    """Video to tokens.

    Example: tivtok encode clip.mp4 clip.tivtok --size native
    """
    from tivtok.streaming import encode_to_file
    from tivtok.tokens import Tokens

    check_output(tokens_file, video)
    sets = parse_tiv_sets(tiv_sets)
    tokenizer = load_model(model, device)
    source = Source(video, size, tokenizer, allow_truncated, strict)
    encode_to_file(tokenizer, source.chunks("encoding"), tokens_file, sets, source.fps, dtype.value)
    print_rows({"wrote": str(tokens_file)} | token_rows(Tokens.open(tokens_file), tokens_file.stat().st_size))
    warn(source.damage())


def decode(
    tokens_file: Annotated[Path, typer.Argument(metavar="IN", help="A token file.")],
    video: VideoOut,
    frames: Annotated[
        str | None,
        typer.Option(help="Only these, as A:B (A to B - 1), N, or several with commas, in any order; reads no others."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second, instead of those of the source.")] = None,
    audio_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Copy the sound of this file (the original), of whole videos.")
    ] = None,
    model: ModelOption = "tiny",
    device: DeviceOption = "auto",
) -> None:
    """Tokens to video.

    Example: tivtok decode clip.tivtok clip.mp4 --frames 16:48
    """
    from tivtok.streaming import decode_stream
    from tivtok.tokens import Tokens
    from tivtok.video import VideoWriter

    check_output(video, tokens_file)
    if audio_from is not None and (frames is not None or fps is not None):
        raise CommandError("--audio-from goes with whole videos at their own rate, not with --frames or --fps")
    tokens = Tokens.open(tokens_file)
    wanted = range(tokens.num_frames) if frames is None else parse_frames(frames, tokens.num_frames)
    rate = known_rate(tokens.fps if fps is None else fps, tokens_file)
    chunks = decode_stream(load_model(model, device), tokens, wanted)
    with VideoWriter(video, rate, tokens.width, tokens.height, audio_from=audio_from) as writer:
        for chunk in track(chunks, "decoding", len(wanted)):
            writer.write(chunk)
    say(f"wrote {video}: {len(wanted)} frames of {tokens.width}x{tokens.height}")


def reconstruct(
    video: VideoIn,
    result: VideoOut,
    beside: Annotated[bool, typer.Option("--side-by-side", help="Write original and reconstruction together.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="Copy the sound of the original.")] = False,
    model: ModelOption = "tiny",
    size: SizeOption = "source",
    tiv_sets: TivSetsOption = "1",
    device: DeviceOption = "auto",
    allow_truncated: TruncatedOption = False,
    strict: StrictOption = False,
) -> None:
    """Video to tokens to video, and how close it is.

    Example: tivtok reconstruct clip.mp4 out.mp4 --side-by-side
    """
    check_output(result, video)
    sets = parse_tiv_sets(tiv_sets)
    tokenizer = load_model(model, device)
    source = Source(video, size, tokenizer, allow_truncated, strict)
    rate = known_rate(source.fps, video)
    tokens = encode_source(tokenizer, source, sets)
    scores = write_reconstruction(tokenizer, tokens, source, result, rate, beside, audio)
    say(f"wrote {result}: {tokens.num_tokens} tokens, {scores}")
    warn(source.damage())


def write_reconstruction(
    tokenizer: TivTok, tokens: Tokens, source: Source, result: Path, fps: float, beside: bool, audio: bool
) -> str:
    """Decode ``tokens`` to a video file, alone or beside the original (enlarged when small), with its ``audio`` or not.

    Returns:
        The scores, as a line of text.
    """
    import torch

    from tivtok.metrics import psnr, ssim
    from tivtok.video import VideoWriter
    from tivtok.views.pictures import scale_to_see, side_by_side

    scale = scale_to_see(source.height, source.width)

    def picture(original: Tensor, reconstruction: Tensor) -> Tensor:
        return side_by_side(original, reconstruction, scale=scale) if beside else reconstruction

    nothing = torch.empty(0, source.height, source.width, 3, dtype=torch.uint8)
    height, width = picture(nothing, nothing).shape[1:3]
    psnrs, ssims = [], []
    with VideoWriter(result, fps, width, height, audio_from=source.path if audio else None) as writer:
        for original, reconstruction in compare(tokenizer, tokens, source.chunks("decoding")):
            writer.write(picture(original, reconstruction))
            psnrs.append(psnr(reconstruction, original))
            ssims.append(ssim(reconstruction, original))
    return score_text(torch.cat(psnrs), torch.cat(ssims))


def known_rate(fps: float | None, path: Path) -> float:
    if fps is None:
        raise CommandError(f"{path} states no frame rate: encode it, then decode it with --fps")
    return fps
