"""The model card of a finished run: ``python -m tivtok.training.card CONFIG.toml [--data DIR] [--output DIR]``.

Measures the run's checkpoint on the held-out videos, next to what resampling makes of as many numbers, draws the
training curve, and writes README.md, curve.png and metrics.json beside the weights.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from tivtok.files import replacing
from tivtok.metrics import PROTOCOL, psnr, ssim
from tivtok.model import TivTok
from tivtok.training.baseline import best_resampling
from tivtok.training.config import TrainConfig
from tivtok.training.data import held_out_frames
from tivtok.training.journal import read_log
from tivtok.training.loop import CHECKPOINT_FOLDER
from tivtok.training.sources import split_sources
from tivtok.video import frames_to_video, video_to_frames


def write_card(config: TrainConfig, introduction: str = "") -> Path:
    """Write the card of the run in ``config.output``.

    Args:
        introduction: markdown that only the person who trained can write: data, licences, hardware.
    """
    folder = config.output / CHECKPOINT_FOLDER
    model = TivTok.from_pretrained(folder)
    training, held_out = split_sources(config)
    clips = torch.stack([frames_to_video(held_out_frames(ref, config)) for ref in held_out])
    num_values = config.model.num_tokens(clips.shape[2]) * config.model.latent_dim
    grid, resampled = best_resampling(clips, num_values)
    with torch.no_grad():
        reconstructed = torch.cat([model(clip[None]) for clip in clips])
    metrics = {
        "model_id": model.model_id,
        "num_values": num_values,
        "resampling_grid": grid,
        "clips": {
            ref.name: {"tivtok": _scores(ours, clip), "resampling": _scores(theirs, clip)}
            for ref, clip, ours, theirs in zip(held_out, clips, reconstructed, resampled, strict=True)
        },
    }
    # By step: the log of an interrupted run that was made before logs were cut on resuming may repeat some.
    log = list({record["step"]: record for record in read_log(config.output) if "held_out_psnr" in record}.values())
    with replacing(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics | {"curve": log}, indent=1) + "\n")
    _draw_curve(folder / "curve.png", log, metrics)
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(_markdown(config, model, metrics, introduction, len(training)))
    return folder / "README.md"


def mean_scores(metrics: dict, method: str) -> dict[str, float]:
    """Mean over the held-out clips of each score of "tivtok" or "resampling"."""
    scores = [clip[method] for clip in metrics["clips"].values()]
    return {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}


def _scores(video: Tensor, original: Tensor) -> dict[str, float]:
    a, b = video_to_frames(video), video_to_frames(original)
    return {"psnr": round(float(psnr(a, b).mean()), 3), "ssim": round(float(ssim(a, b).mean()), 4)}


def _draw_curve(path: Path, log: list[dict], metrics: dict) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in log], [r["held_out_psnr"] for r in log], marker=".", label="TivTok, averaged weights")
    axes.axhline(mean_scores(metrics, "resampling")["psnr"], color="gray", linestyle="--", label="resampling")
    axes.set(xlabel="step", ylabel="PSNR on held-out clips (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _markdown(config: TrainConfig, model: TivTok, metrics: dict, introduction: str, num_training: int) -> str:
    sizes = config.model
    frames, height, width = sizes.chunk_frames, *sizes.native_size
    ours, theirs = mean_scores(metrics, "tivtok"), mean_scores(metrics, "resampling")
    f, h, w = metrics["resampling_grid"]
    rows = "\n".join(
        f"| {name} | {s['tivtok']['psnr']:.2f} / {s['tivtok']['ssim']:.3f} "
        f"| {s['resampling']['psnr']:.2f} / {s['resampling']['ssim']:.3f} |"
        for name, s in metrics["clips"].items()
    )
    return f"""---
library_name: tivtok
license: apache-2.0
---
# TivTok `{sizes.name}`

{introduction}

{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {sizes.encoder_layers} + {sizes.decoder_layers} \
layers of width {sizes.width}, model id `{metrics["model_id"]}`. {sizes.num_tiv} TIV tokens per TIV set and \
{sizes.num_tv} TV tokens per frame group, {sizes.latent_dim} values each: {frames} frames of {height}x{width} become \
{sizes.num_tokens(frames)} tokens, {metrics["num_values"]} numbers, \
{sizes.compression_rate(frames, height, width):.2%} of the video's.

## Held-out quality

{len(metrics["clips"])} clips of sources that training never saw ({num_training} files were trained on): the first \
{frames} frames, centre crop at {height}x{width}. "Resampling" keeps as many numbers (a grid of {f}x{h}x{w} points \
per clip, the best one for these clips) and goes there and back bicubically.

| PSNR (dB) / SSIM | TivTok | resampling |
|---|---|---|
| **mean** | **{ours["psnr"]:.2f} / {ours["ssim"]:.3f}** | **{theirs["psnr"]:.2f} / {theirs["ssim"]:.3f}** |
{rows}

Protocol: {PROTOCOL}.

![held-out PSNR over training](curve.png)

Made by `python -m tivtok.training.card`; the numbers are in `metrics.json`.
"""


def main(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml")],
    data: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder, instead of the config's.")] = None,
    introduction: Annotated[Path | None, typer.Option(help="A markdown file to open the card with.")] = None,
) -> None:
    run = TrainConfig.load(config)
    run = replace(run, data=data or run.data, output=output or run.output)
    print(f"wrote {write_card(run, introduction.read_text().strip() if introduction else '')}")


if __name__ == "__main__":
    typer.run(main)
