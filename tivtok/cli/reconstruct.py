"""``tivtok reconstruct``."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from tivtok.cli.options import (
    CompileOption,
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
    VideoOut,
    parse_tiv_sets,
)
from tivtok.cli.output import check_output, say, score_text, warn
from tivtok.cli.source import Source, compare, encode_source, known_rate
from tivtok.cli.summary import JsonOption, Summary
from tivtok.loading import load_model
from tivtok.metrics import psnr, ssim
from tivtok.streaming import decode_stream
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoWriter
from tivtok.views.pictures import added, scale_to_see, side_by_side


def reconstruct(
    video: VideoIn,
    result: VideoOut,
    beside: Annotated[bool, typer.Option("--side-by-side", help="Write original and reconstruction together.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="Copy the sound of the original.")] = False,
    model: ModelOption = "tiny",
    size: SizeOption = "source",
    tiv_sets: TivSetsOption = "1",
    refine: RefineOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    compile: CompileOption = False,
    allow_truncated: TruncatedOption = False,
    strict: StrictOption = False,
    json_file: JsonOption = None,
) -> None:
    """Encode and decode a video, and say how close the result is.

    Example: tivtok reconstruct clip.mp4 out.mp4 --side-by-side
    """
    check_output(result, video)
    summary = Summary("reconstruct", json_file)
    sets = parse_tiv_sets(tiv_sets)
    tokenizer = load_model(model, device, precision, compile)
    source = Source(video, size, tokenizer, allow_truncated, strict)
    rate = known_rate(source.fps, video)
    tokens = encode_source(tokenizer, source, sets, refine)
    scores = write_reconstruction(tokenizer, tokens, source, result, rate, beside, audio)
    say(f"wrote {result}: {tokens.num_tokens} tokens, {score_text(*scores)}")
    warn(source.damage())
    means = {"psnr": float(scores[0].mean()), "ssim": float(scores[1].mean())}
    summary.write(tokenizer, result, 1, tokens.num_frames, tokens.num_tokens, more={"scores": means})


def write_reconstruction(
    tokenizer: TivTok,
    tokens: Tokens,
    source: Source,
    result: Path,
    fps: float,
    beside: bool,
    audio: bool,
    beyond: Tokens | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode ``tokens`` to a video file, alone or beside the original (enlarged when small), with its ``audio`` or not.

    Args:
        beyond: show what the reconstruction has beyond that of these tokens, on grey; they have the same TIV sets.

    Returns:
        PSNR in dB and SSIM of each frame, (F,) both.
    """
    scale = scale_to_see(source.height, source.width)

    def picture(original: Tensor, reconstruction: Tensor) -> Tensor:
        return side_by_side(original, reconstruction, scale=scale) if beside else reconstruction

    nothing = torch.empty(0, source.height, source.width, 3, dtype=torch.uint8)
    height, width = picture(nothing, nothing).shape[1:3]
    # As numbers: small tensors kept between large ones that are freed would fill glibc's heap with holes.
    psnrs: list[float] = []
    ssims: list[float] = []
    with VideoWriter(result, fps, width, height, audio_from=source.path if audio else None) as writer:
        pairs = compare(tokenizer, tokens, source.tracked("decoding"))
        parts = repeat(None) if beyond is None else decode_stream(tokenizer, beyond)
        for (original, reconstruction), part in zip(pairs, parts, strict=False):
            writer.write(picture(original, reconstruction if part is None else added(reconstruction, part)))
            psnrs += psnr(reconstruction, original).tolist()
            ssims += ssim(reconstruction, original).tolist()
    return torch.tensor(psnrs), torch.tensor(ssims)
