"""What it costs to compute tokens in 16 bits: against those of float32, clip by clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.dumps import beside
from benchmarks.provenance import provenance
from benchmarks.studies.record import Record, fingerprint
from tivtok.files import replacing
from tivtok.loading import PRECISIONS, load_model
from tivtok.metrics import psnr
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoReader, find_videos, fit, video_to_frames

out = Console(highlight=False, markup=False)


def precision(
    data: Annotated[Path, typer.Option(help="A folder of clips that training has not seen.")],
    model: Annotated[str, typer.Option(help="A bundled checkpoint's name or a checkpoint folder.")] = "tiny",
    device: Annotated[str, typer.Option(help="As of `tivtok encode`.")] = "cpu",
    frames: Annotated[int, typer.Option(min=1, help="Of each clip, from its start.")] = 64,
    clips: Annotated[int, typer.Option(min=1, help="How many, evenly over the folder's.")] = 40,
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
    note: Annotated[str, typer.Option(help="Kept with the numbers: what the clips are.")] = "",
) -> None:
    """PSNR of float32 against bfloat16 and float16, at the model's size. Goes on where it was stopped."""
    models = {name: load_model(model, device, name) for name in PRECISIONS}
    exact = models["float32"]
    settings = {
        "model": f"{exact.config.name}, id {exact.model_id}",
        "size": list(exact.config.native_size),
        "frames": frames,
        "data": note,
        "clips": fingerprint(data),
        "machine": {name: provenance(torch.device(device))[name] for name in ("device", "torch")},
    }
    record = Record.open(results / "precision.json.gz", settings)
    found = find_videos(data)
    for path in (found[i * len(found) // clips] for i in range(clips)) if clips < len(found) else found:
        if path.stem not in record.measured:
            chunk = next(iter(VideoReader(path, allow_truncated=True).chunks(frames)))
            record.add(path.stem, measure(models, fit(chunk, *exact.config.native_size)))
            out.print(f"measured {path.stem}")
    with replacing(beside(record.path, ".md")) as temporary:
        temporary.write_text(report(record.settings, record.measured))
    out.print(f"wrote {record.path} and .md", soft_wrap=True)


@torch.no_grad()
def measure(models: dict[str, TivTok], clip: Tensor) -> dict[str, dict[str, float]]:
    """Numbers of each precision for uint8 frames (F, H, W, 3), see `COLUMNS`; also of float32 as files store it."""
    exact, rows = models["float32"], {}
    video = clip.permute(3, 0, 1, 2)[None].to(next(exact.parameters()).device)
    reference = exact.encode(video)
    shown = _decoded(exact, reference)
    ways = {name: (model, model.encode(video)) for name, model in models.items()}
    ways[STORED] = exact, replace(reference, tiv=reference.tiv.half(), tv=reference.tv.half())
    for name, (model, tokens) in ways.items():
        same = _decoded(exact, tokens)
        rows[name] = {
            "tokens": _distance(tokens, reference),
            "decoded in float32": _psnr(same, clip),
            "decoded in it": _psnr(_decoded(model, tokens), clip),
            "between the frames": _psnr(same, shown),
        }
    return rows


STORED = "float32, stored as float16"
COLUMNS = {
    "tokens": "tokens, distance",
    "decoded in float32": "PSNR, decoded in float32",
    "decoded in it": "PSNR, decoded in it",
    "between the frames": "PSNR to the frames of float32",
}


def report(settings: dict[str, Any], measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """The means over clips as Markdown."""
    height, width = settings["size"]
    machine = settings["machine"]
    lines = [
        "# Precision",
        "",
        f"Model {settings['model']}, {width}x{height}, the first {settings['frames']} frames of {len(measured)} clips, "
        f"one TIV set. {settings['data']} {machine['device']}, torch {machine['torch']}.",
        "",
        "Written by `python -m benchmarks.studies precision`. Means over clips, in dB, the distance in percent: the "
        "root of the mean square of the difference to the tokens of float32, over that of these tokens. Frames that "
        "are equal count as 100 dB.",
        "",
        f"| encoded in | {' | '.join(COLUMNS.values())} | worst clip loses |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name in next(iter(measured.values()), {}):
        rows = [clip[name] for clip in measured.values()]
        means = {column: float(np.mean([row[column] for row in rows])) for column in COLUMNS}
        lost = max(clip["float32"]["decoded in it"] - clip[name]["decoded in it"] for clip in measured.values())
        cells = [f"{100 * means['tokens']:.2f} %", *(f"{means[column]:.3f}" for column in list(COLUMNS)[1:])]
        lines.append(f"| {name} | {' | '.join(cells)} | {lost:.3f} |")
    return "\n".join(lines) + "\n"


def _decoded(model: TivTok, tokens: Tokens) -> Tensor:
    return video_to_frames(model.decode(tokens)[0]).cpu()


def _distance(tokens: Tokens, reference: Tokens) -> float:
    one, other = (torch.cat([x.tiv.flatten(), x.tv.flatten()]).double() for x in (tokens, reference))
    return float((one - other).norm() / other.norm())


def _psnr(frames: Tensor, others: Tensor) -> float:
    return round(float(psnr(frames, others).clamp(max=100).mean()), 4)
