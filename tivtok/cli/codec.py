"""``tivtok encode`` and ``tivtok decode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tivtok.budgets import Budget
from tivtok.cli.options import (
    CompileOption,
    DeviceOption,
    ModelOption,
    NumTivOption,
    NumTvOption,
    Precision,
    PrecisionOption,
    PsnrOption,
    ReaderOption,
    RefineOption,
    SizeOption,
    StoredDtypeOption,
    StrictOption,
    TivSetsOption,
    TruncatedOption,
    VideoIn,
    VideoOut,
    calibration_for,
    parse_frames,
    parse_tiv_sets,
)
from tivtok.cli.output import CommandError, StepsBar, check_output, print_rows, say, token_rows, track, warn
from tivtok.cli.source import Source, known_rate
from tivtok.cli.summary import JsonOption, Summary
from tivtok.loading import load_model
from tivtok.streaming import decode_stream, encode_to_file
from tivtok.tokens import Tokens
from tivtok.video import VideoWriter


def encode(
    video: VideoIn,
    tokens_file: Annotated[Path, typer.Argument(metavar="OUT", help="The token file to write, e.g. clip.tivtok.")],
    model: ModelOption = "tiny",
    size: SizeOption = "source",
    tiv_sets: TivSetsOption = "1",
    dtype: StoredDtypeOption = "float16",
    refine: RefineOption = 0,
    num_tiv: NumTivOption = None,
    num_tv: NumTvOption = None,
    psnr: PsnrOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    compile: CompileOption = False,
    allow_truncated: TruncatedOption = False,
    strict: StrictOption = False,
    reader: ReaderOption = "pyav",
    json_file: JsonOption = None,
) -> None:
    """Encode a video to tokens.

    Example: tivtok encode clip.mp4 clip.tivtok --size native
    """
    check_output(tokens_file, video)
    summary = Summary("encode", json_file)
    sets = parse_tiv_sets(tiv_sets)
    calibration = calibration_for(dtype, model)
    tokenizer = load_model(model, device, precision, compile)
    budget = Budget(num_tiv, num_tv, psnr)
    budget.check(tokenizer.config, refine)
    source = Source(video, size, tokenizer, allow_truncated, strict, reader)
    with StepsBar("refining") as bar:
        chunks = source.tracked("encoding")
        missed = encode_to_file(
            tokenizer, chunks, tokens_file, sets, source.fps, dtype, refine, bar.show, calibration, budget
        )
    tokens = Tokens.open(tokens_file)
    print_rows({"wrote": str(tokens_file)} | token_rows(tokens, tokens_file.stat().st_size))
    warn(budget.says(missed, video))
    warn(source.damage())
    summary.write(tokenizer, tokens_file, 1, tokens.num_frames, tokens.num_tokens)


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
    precision: PrecisionOption = Precision.AUTO,
    compile: CompileOption = False,
    json_file: JsonOption = None,
) -> None:
    """Decode tokens to a video.

    Example: tivtok decode clip.tivtok clip.mp4 --frames 16:48
    """
    check_output(video, tokens_file)
    summary = Summary("decode", json_file)
    if audio_from is not None and (frames is not None or fps is not None):
        raise CommandError("--audio-from goes with whole videos at their own rate, not with --frames or --fps")
    tokens = Tokens.open(tokens_file)
    wanted = range(tokens.num_frames) if frames is None else parse_frames(frames, tokens.num_frames)
    rate = known_rate(tokens.fps if fps is None else fps, tokens_file)
    tokenizer = load_model(model, device, precision, compile)
    chunks = decode_stream(tokenizer, tokens, wanted)
    with VideoWriter(video, rate, tokens.width, tokens.height, audio_from=audio_from) as writer:
        for chunk in track(chunks, "decoding", len(wanted)):
            writer.write(chunk)
    say(f"wrote {video}: {len(wanted)} frames of {tokens.width}x{tokens.height}")
    summary.write(tokenizer, video, 1, len(wanted), tokens.num_tokens)
