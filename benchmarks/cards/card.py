"""The model card of a finished run: ``python -m benchmarks.cards.card CONFIG.toml [--data DIR] [--output DIR]``.

Measures the run's checkpoint on the held-out videos (on those the config excludes, where it does: nothing was chosen on
these), next to what resampling makes of as many numbers and to other checkpoints, draws the training curve, and writes
README.md, curve.png and metrics.json beside the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.cards.baseline import best_resampling, dct_coefficients, still
from tivtok.files import replacing
from tivtok.metrics import PROTOCOL
from tivtok.metrics.evaluation import Evaluation
from tivtok.metrics.i3d import load_i3d
from tivtok.metrics.lpips import LPIPS
from tivtok.metrics.protocols import PROTOCOLS
from tivtok.metrics.weights import find_weights
from tivtok.tokenizer import TivTok
from tivtok.training.config import TrainConfig
from tivtok.training.data import held_out_frames
from tivtok.training.journal import read_log
from tivtok.training.loop import CHECKPOINT_FOLDER
from tivtok.training.split import split_sources
from tivtok.video import frames_to_video, video_to_frames

OURS, STILL, RESAMPLING, DCT = "TivTok", "still picture", "resampling", "DCT"
DIGITS = {"psnr": 2, "ssim": 3, "lpips-vgg": 3, "lpips-alex": 3, "rfvd": 0}  # of the scores, in their order
TITLES = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "lpips-vgg": "LPIPS-VGG",
    "lpips-alex": "LPIPS-Alex",
    "rfvd": "rFVD (I3D logits)",
}


@dataclass(frozen=True)
class Networks:
    """What LPIPS and rFVD are computed by; without them there are PSNR and SSIM."""

    lpips: Mapping[str, LPIPS] = field(default_factory=dict)
    features: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def load(cls, folder: Path) -> Networks:
        """
        Raises:
            WeightsError: ``folder`` lacks one of them.
        """
        return cls(
            {
                "lpips-vgg": LPIPS("vgg", weights=find_weights("lpips-vgg", folder)),
                "lpips-alex": LPIPS("alex", weights=find_weights("lpips-alex", folder)),
            },
            load_i3d(find_weights("i3d", folder)),
        )


def write_card(
    config: TrainConfig,
    introduction: str = "",
    others: Mapping[str, TivTok] | None = None,
    networks: Networks | None = None,
) -> Path:
    """Write the card of the run in ``config.output``.

    Args:
        introduction: markdown that only the person who trained can write: data, licences, hardware.
        others: models to measure beside this one, by the name they get.
        networks: for LPIPS and rFVD.
    """
    folder = config.output / CHECKPOINT_FOLDER
    model = TivTok.from_pretrained(folder)
    unseen = replace(config, held_out=config.excluded, excluded=config.held_out) if config.excluded else config
    training, held_out, _ = split_sources(unseen)
    originals = [held_out_frames(ref, config) for ref in held_out]
    clips = torch.stack([frames_to_video(frames) for frames in originals])
    num_values = config.model.num_tokens(clips.shape[2]) * config.model.latent_dim
    grid, resampled = best_resampling(clips, num_values)
    with torch.no_grad():
        reconstructions = {
            name: torch.cat([m(clip[None]) for clip in clips]) for name, m in {OURS: model, **(others or {})}.items()
        }
    reconstructions[STILL] = still(clips, config.model.frames_per_group)
    reconstructions[RESAMPLING] = resampled
    reconstructions[DCT] = dct_coefficients(clips, num_values).clamp(-1, 1)
    scores = {name: _measure(originals, x, networks or Networks()) for name, x in reconstructions.items()}
    metrics = {
        "model_id": model.model_id,
        "num_values": num_values,
        "resampling_grid": grid,
        "means": {name: _rounded(evaluation.means()) for name, evaluation in scores.items()},
        "clips": {
            ref.name: {name: _rounded(evaluation.videos[at]) for name, evaluation in scores.items()}
            for at, ref in enumerate(held_out)
        },
    }
    log = [record for record in read_log(config.output) if "held_out_psnr" in record]
    with replacing(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics | {"curve": log}, indent=1) + "\n")
    _draw_curve(folder / "curve.png", log, None if config.excluded else scores[RESAMPLING].means()["psnr"])
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(_markdown(config, model, metrics, introduction, len(training)))
    return folder / "README.md"


def _measure(originals: list[Tensor], reconstructions: Tensor, networks: Networks) -> Evaluation:
    protocol = replace(PROTOCOLS["whole"], frames=len(originals[0]))
    evaluation = Evaluation(protocol, dict(networks.lpips), networks.features)
    for original, reconstruction in zip(originals, reconstructions, strict=True):
        evaluation.add([(original, video_to_frames(reconstruction))], len(original))
    return evaluation


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    """Finite scores only: a clip of one chunk has no seams."""
    return {name: round(scores[name], 4) for name in DIGITS if name in scores and math.isfinite(scores[name])}


def _draw_curve(path: Path, log: list[dict], resampling: float | None) -> None:
    """PSNR over training, beside resampling where that was measured on the same clips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in log], [r["held_out_psnr"] for r in log], marker=".", label="TivTok, averaged weights")
    if resampling is not None:
        axes.axhline(resampling, color="gray", linestyle="--", label="resampling")
    axes.set(xlabel="step", ylabel="PSNR on held-out clips (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _markdown(config: TrainConfig, model: TivTok, metrics: dict, introduction: str, num_training: int) -> str:
    sizes = config.model
    frames, height, width = sizes.chunk_frames, *sizes.native_size
    f, h, w = metrics["resampling_grid"]
    means = metrics["means"]
    shown = list(means[OURS])
    clips = [
        f"| {name} | " + " | ".join(f"{s['psnr']:.2f} / {s['ssim']:.3f}" for s in by_method.values()) + " |"
        for name, by_method in metrics["clips"].items()
    ]
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
per clip, the best one for these clips) and goes there and back bicubically; "DCT" keeps as many 3D DCT coefficients, \
those with the most energy in these clips; "still picture" shows every frame group the mean of all, without loss, at \
many more numbers.

| mean | {" | ".join(TITLES[score] for score in shown)} |
|---{"|---" * len(shown)}|
{chr(10).join(_row(name, scores) for name, scores in means.items())}

PSNR (dB) / SSIM of each clip:

| | {" | ".join(means)} |
|---{"|---" * len(means)}|
{chr(10).join(clips)}

Protocol: {PROTOCOL}.

![held-out PSNR over training](curve.png)

Made by `python -m benchmarks.cards.card`; the numbers are in `metrics.json`.
"""


def _row(name: str, scores: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.{DIGITS[score]}f}" for score, value in scores.items()) + " |"


def main(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml")],
    data: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder, instead of the config's.")] = None,
    introduction: Annotated[Path | None, typer.Option(help="A markdown file to open the card with.")] = None,
    other: Annotated[
        list[str] | None, typer.Option(metavar="NAME=CHECKPOINT", help="A checkpoint to measure beside this one.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A folder made by `tivtok weights`: adds LPIPS and rFVD.")
    ] = None,
) -> None:
    run = TrainConfig.load(config)
    run = replace(run, data=data or run.data, output=output or run.output)
    named = (text.partition("=") for text in other or ())
    card = write_card(
        run,
        introduction.read_text().strip() if introduction else "",
        {name: TivTok.from_pretrained(checkpoint) for name, _, checkpoint in named},
        Networks.load(weights) if weights else None,
    )
    print(f"wrote {card}")


if __name__ == "__main__":
    typer.run(main)
