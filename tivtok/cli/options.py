"""Options and arguments that several commands share, and how their texts are read."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import typer

from tivtok.chunks.sharing import TivSets
from tivtok.cli.output import CommandError
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.format import StoredDtype


class Precision(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


VideoIn = Annotated[Path, typer.Argument(metavar="IN", help="A video that FFmpeg can read.")]
VideoOut = Annotated[Path, typer.Argument(metavar="OUT", help="The video to write: .mp4, .mkv or .mov, H.264.")]
ModelOption = Annotated[
    str,
    typer.Option("--model", help="A bundled checkpoint's name, a checkpoint folder, or a Hugging Face repository."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help='"auto" (the GPU where there is one), "cpu", or the number of a GPU.')
]
SizeOption = Annotated[
    str,
    typer.Option(
        "--size", help='"source", "native" (what the model was trained at) or WIDTHxHEIGHT; the centre is cut to fit.'
    ),
]
TivSetsOption = Annotated[
    str,
    typer.Option(
        "--tiv-sets",
        metavar="N|auto",
        help="TIV sets shared by the chunks: 1 is full reuse, one per chunk none; auto: one where content changes.",
    ),
]
TruncatedOption = Annotated[
    bool, typer.Option("--allow-truncated", help="Take what can be read of a file that ends early.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail where a decoder has made up for damage, instead of a warning at the end.")
]

PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="The model computes in this; auto: bfloat16 on GPUs, else float32.")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the model (torch.compile): pays for many videos of one size.")
]
ReaderOption = Annotated[
    str,
    typer.Option(
        "--reader",
        metavar="pyav|torchcodec[:DEVICE]",
        help='What decodes videos; torchcodec must be installed, "torchcodec:cuda" is NVDEC.',
    ),
]
RefineOption = Annotated[
    int,
    typer.Option("--refine", metavar="N", min=0, help="Improve the tokens by N steps through the decoder: slow."),
]


NumTivOption = Annotated[
    int | None,
    typer.Option("--num-tiv", metavar="N", min=1, help="Keep N tokens of each TIV set, of a model with nested tokens."),
]
NumTvOption = Annotated[
    int | None,
    typer.Option("--num-tv", metavar="N", min=1, help="Keep N TV tokens of each frame group, likewise."),
]
PsnrOption = Annotated[
    float | None,
    typer.Option(
        "--psnr",
        metavar="DB",
        help="Keep as few tokens as give every frame group so much, by trial: slow; likewise.",
    ),
]


def _stored_dtype(text: str) -> StoredDtype:
    for known in get_args(StoredDtype):
        if text == known:
            return known
    raise typer.BadParameter(f"must be one of {', '.join(get_args(StoredDtype))}, got {text!r}")


StoredDtypeOption = Annotated[
    StoredDtype,
    typer.Option(
        "--dtype",
        parser=_stored_dtype,
        metavar="|".join(get_args(StoredDtype)),
        help="How token values are stored; coded, the smallest, needs `tivtok calibrate` of the model.",
    ),
]


def calibration_for(dtype: StoredDtype, model: str) -> Calibration | None:
    """The calibration beside a checkpoint, where the dtype needs one.

    Raises:
        CheckpointError: there is none.
    """
    return Calibration.from_pretrained(model) if dtype == "coded" else None


def parse_tiv_sets(text: str) -> TivSets:
    """--tiv-sets -> its value.

    Raises:
        CommandError: it is neither a number nor "auto".
    """
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise CommandError(f'--tiv-sets must be a whole number from 1 or "auto", got "{text}"')
    return int(text)


def parse_frames(text: str, num_frames: int) -> list[int]:
    """ "A:B", "A:", ":B" or "A", or several of them with commas -> the frames meant, in the order given.

    Raises:
        CommandError: it is none of these, or not a part of 0..num_frames.
    """
    frames: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{0,9})(:?)(\d{0,9})", part)
        first, colon, last = match.groups() if match and part not in ("", ":") else ("", "", "")
        start = int(first or 0)
        stop = (int(last) if last else num_frames) if colon else start + 1
        if not (first or colon) or not start < stop <= num_frames:
            raise CommandError(f'--frames must be A:B (or several) with 0 <= A < B <= {num_frames}, got "{text}"')
        frames += range(start, stop)
    return frames
