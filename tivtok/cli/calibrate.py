"""``tivtok calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from tivtok.checkpoints import CALIBRATION_FILE
from tivtok.cli.options import DeviceOption, Precision, PrecisionOption, StrictOption
from tivtok.cli.output import CommandError, say, track, warn
from tivtok.cli.source import Source, encode_frames, of_readable
from tivtok.loading import load_model
from tivtok.metrics import psnr
from tivtok.tokenizer import TivTok
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.codecs import Codec
from tivtok.video import find_videos, video_to_frames

STEPS_TRIED = 24  # each finer than the one before by the square root of 2
CHUNKS_TRIED = 64  # that steps are tried on, one a video


class Chunk(NamedTuple):
    """A chunk as uint8 frames (f, H, W, 3), its TIV set (1, N_TIV, D) and its frame groups (T, N_TV, D)."""

    frames: Tensor
    tiv: Tensor
    tv: Tensor


@torch.no_grad()
def calibrate(
    data: Annotated[Path, typer.Argument(help="Folder of videos that the model was trained on.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Checkpoint folder; the calibration is written into it.")],
    loss: Annotated[float, typer.Option(min=0.001, max=3.0, help="dB of PSNR that coding may cost.")] = 0.1,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    strict: StrictOption = False,
) -> None:
    """Measure what coded token files need to know of a checkpoint: how finely to quantise, and how values are spread.

    It is written beside the weights, which stay as they are, and so does the model id. Use training footage: what a
    result is measured on should not have been seen here either.

    Example: tivtok calibrate clips/ --model runs/mine
    """
    tokenizer = load_model(str(model), device, precision)
    files = find_videos(data)
    if not files:
        raise CommandError(f"there are no videos in {data}")
    tiv: list[Tensor] = []
    tv: list[Tensor] = []
    chunks: list[Chunk] = []
    unreadable: list[Path] = []
    for first, sets, groups in of_readable(files, data, lambda path: _encoded(tokenizer, path, strict), unreadable):
        tiv.append(sets)
        tv.append(groups)
        if len(chunks) < CHUNKS_TRIED:
            chunks.append(first)
    calibration, cost, size = coarsest(tokenizer, torch.cat(tiv), torch.cat(tv), chunks, loss)
    calibration.save(model)
    plain = 2 * sum(chunk.tiv.numel() + chunk.tv.numel() for chunk in chunks)
    say(f"{cost:.3f} dB lost, {plain / size:.2f} times smaller than float16")
    say(f"of {len(chunks)} chunks, values spread as in {sum(map(len, tiv))} chunks of {len(tiv)} videos")
    say(f"wrote {model / CALIBRATION_FILE}")
    if unreadable:
        raise CommandError(f"{len(unreadable)} of {len(files)} videos could not be read")


def coarsest(
    model: TivTok, tiv: Tensor, tv: Tensor, chunks: Sequence[Chunk], loss: float
) -> tuple[Calibration, float, int]:
    """The calibration with the coarsest step that costs at most ``loss`` dB on ``chunks``.

    Args:
        tiv, tv: (n, N, D), all that is known of how values are spread.

    Returns:
        the calibration, the dB it costs, the bytes of the coded chunks.

    Raises:
        CommandError: no step of those tried is fine enough.
    """
    before = _quality(model, chunks)
    spread = float(torch.cat([tiv.flatten(), tv.flatten()]).std())
    for number in track(range(STEPS_TRIED), "choosing the step", STEPS_TRIED, "steps", count=lambda _: 1):
        calibration = Calibration.of(tiv, tv, spread * 2 ** (2 - number / 2), model.model_id)
        coded, sizes = zip(*(_coded(calibration, chunk) for chunk in chunks), strict=True)
        cost = before - _quality(model, coded)
        if cost <= loss:
            return calibration, cost, sum(sizes)
    raise CommandError(f"--loss {loss:g} needs a finer step than {spread * 2 ** (2 - number / 2):.2g}")


def _encoded(model: TivTok, path: Path, strict: bool) -> tuple[Chunk, Tensor, Tensor]:
    """The first chunk of a video, all TIV sets (K, N_TIV, D) and all frame groups (T, N_TV, D).

    Raises:
        VideoError: the video cannot be read, or all of it with ``strict``: nothing of it is counted then.
    """
    source = Source(path, "native", model, allow_truncated=True, strict=strict)
    chunks: list[Chunk] = []
    for frames in source.chunks():
        tiv, tv = encode_frames(model, frames)
        chunks.append(Chunk(frames[:0] if chunks else frames, tiv[0], tv[0]))
    warn(source.damage())
    return chunks[0], torch.cat([chunk.tiv for chunk in chunks]), torch.cat([chunk.tv for chunk in chunks])


def _coded(calibration: Calibration, chunk: Chunk) -> tuple[Chunk, int]:
    """A chunk with tokens that have been coded, and the bytes that this took."""
    tiv, tiv_bytes = _round_trip(calibration.codecs.tiv, chunk.tiv)
    tv, tv_bytes = _round_trip(calibration.codecs.tv, chunk.tv)
    return Chunk(chunk.frames, tiv, tv), tiv_bytes + tv_bytes


def _round_trip(codec: Codec, x: Tensor) -> tuple[Tensor, int]:
    data = codec.encode(x[None].numpy())
    return torch.from_numpy(codec.decode(data, (1, *x.shape)))[0], len(data)


def _quality(model: TivTok, chunks: Sequence[Chunk]) -> float:
    """Mean PSNR of the chunks as they are decoded, in dB."""
    scores = []
    for frames, tiv, tv in chunks:
        video = model.decode_groups(model.prepare(tiv[None]), tv[None], [len(tv)], *frames.shape[1:3])
        scores.append(psnr(video_to_frames(video[0, :, : len(frames)]).cpu(), frames).clamp(max=100).mean())
    return float(torch.stack(scores).mean())
