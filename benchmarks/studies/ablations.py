"""The paper's ablations (Tables 4-6) in small: the same budget for every variant, on clips of two chunks.

Every variant is trained on 32-frame clips through one TIV set, as in the paper's long-video stage (Sec. 3.5), with the
same clips in the same order for one seed, and measured on held-out videos.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.studies.ablation_report import LONG_FRAMES, LONG_SETS, write_report
from benchmarks.studies.ablation_variants import FULL, VARIANTS, Variant
from benchmarks.studies.record import Record, fingerprint
from tivtok.metrics import PROTOCOL, psnr, ssim
from tivtok.tokenizer import TivTok
from tivtok.training.config import TrainConfig
from tivtok.training.optim import build_optimizers, schedule
from tivtok.video import VideoReader, find_videos, fit, frames_to_video, resize, video_to_frames

out = Console(highlight=False, markup=False)


@dataclass(frozen=True)
class Budget:
    """What each run gets: steps on batches of clips, Muon and AdamW with one cosine cycle.

    Attributes:
        side: of the square frames, in pixels.
        frames: of a clip, two chunks.
    """

    steps: int
    batch: int
    side: int
    frames: int = 2 * FULL.chunk_frames
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.05


def ablations(
    data: Annotated[Path, typer.Option(help="A folder of videos; those held out have 128 frames or more.")],
    results: Annotated[Path, typer.Option(help="Where the numbers and the picture go.")] = Path("docs/results"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 800,
    batch: Annotated[int, typer.Option(min=1, help="Clips of 32 frames in a step.")] = 8,
    side: Annotated[int, typer.Option(min=16, help="Side of the square frames in pixels.")] = 32,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 2,
    held_out: Annotated[int, typer.Option(min=1, help="Videos to measure on.")] = 32,
    note: Annotated[str, typer.Option(help="Kept with the numbers: what the videos are.")] = "",
) -> None:
    """Train and measure every variant of the paper's ablations, small. Goes on where it was stopped.

    Example: python -m benchmarks.studies ablations --data clips/
    """
    budget = Budget(steps, batch, side)
    settings = {
        "data": note,
        "videos": fingerprint(data),
        "held_out": held_out,
        "budget": asdict(budget),
        "model": FULL.to_dict(),
        "variants": {name: asdict(variant) for name, variant in VARIANTS.items()},
        "protocol": PROTOCOL,
    }
    record = Record.open(results / "ablations.json.gz", settings)
    training, testing = load(data, held_out, side)
    for seed in range(seeds):  # all variants with one seed first: a table that is complete early
        for name, variant in VARIANTS.items():
            key = f"{name}/{seed}"
            if key not in record.measured:
                model, losses = train(variant, training, budget, seed, f"{key} ({len(record.measured)} runs done)")
                record.add(key, measure(variant, model, testing, long=name == "full") | {"losses": losses})
                out.print(f"{key}: {np.mean(record.measured[key]['psnr_32']):.2f} dB at 32 frames")
    write_report(record)


def load(data: Path, held_out: int, side: int) -> tuple[list[Tensor], Tensor]:
    """The videos to train on, uint8 (F, h, w, 3) a little larger than ``side``, and those to measure on, uint8
    (N, 128, side, side, 3): a random choice, the same every time, of the videos that are long enough.

    Raises:
        ValueError: there are too few videos.
    """
    files = find_videos(data)
    random.Random(0).shuffle(files)
    training: list[Tensor] = []
    testing: list[Tensor] = []
    with Progress(transient=True) as progress:
        for path in progress.track(files, description="reading"):
            frames = torch.cat([_shrink(chunk, side) for chunk in VideoReader(path, allow_truncated=True).chunks(64)])
            if len(testing) < held_out and len(frames) >= LONG_FRAMES:
                testing.append(fit(frames[:LONG_FRAMES], side, side))
            elif len(frames) >= 2 * FULL.chunk_frames:
                training.append(frames)
    if len(testing) < held_out or not training:
        raise ValueError(
            f"data must hold more than {held_out} videos, {held_out} of them of {LONG_FRAMES} frames or more: "
            f"{data} has {len(files)} videos, {len(testing)} of them long enough"
        )
    return training, torch.stack(testing)


def train(variant: Variant, videos: list[Tensor], budget: Budget, seed: int, doing: str) -> tuple[TivTok, list[float]]:
    """A trained model and the loss of each step."""
    torch.manual_seed(seed)
    model = variant.build().train()
    optimizers, schedulers = _optimizers(model, budget)
    losses = []
    with Progress(transient=True) as progress:
        task = progress.add_task(doing, total=budget.steps)
        for clips in batches(videos, budget, seed):
            loss = F.mse_loss(reconstruct(variant, model, clips), clips)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            losses.append(round(loss.item(), 5))
            progress.update(task, advance=1, description=f"{doing}, loss {losses[-1]:.4f}")
    return model.eval(), losses


def _optimizers(model: TivTok, budget: Budget) -> tuple[list[Optimizer], list[LambdaLR]]:
    """As ``tivtok train`` sets them up."""
    config = TrainConfig(
        output=Path(),
        data=Path(),
        model=model.config.replace(nested=False),  # whose own steps draw their budgets
        steps=budget.steps,
        optimizer="muon",
        learning_rate=budget.learning_rate,
        muon_learning_rate=budget.muon_learning_rate,
        warmup_steps=budget.steps // 20,
    )
    optimizers = build_optimizers(model, config)
    return optimizers, [LambdaLR(optimizer, partial(schedule, config=config)) for optimizer in optimizers]


def batches(videos: list[Tensor], budget: Budget, seed: int) -> Iterator[Tensor]:
    """(B, 3, F, side, side) in [-1, 1], ``budget.steps`` times: random crops, mirrored or not."""
    rng = np.random.default_rng(seed)
    for _ in range(budget.steps):
        clips = []
        for _ in range(budget.batch):
            video = videos[rng.integers(len(videos))]
            start, top, left = (
                rng.integers(size - wanted + 1)
                for size, wanted in zip(video.shape, (budget.frames, budget.side, budget.side), strict=False)
            )
            clip = video[start : start + budget.frames, top : top + budget.side, left : left + budget.side]
            clips.append(frames_to_video(clip.flip(2) if rng.random() < 0.5 else clip))
        yield torch.stack(clips)


def reconstruct(variant: Variant, model: TivTok, clips: Tensor) -> Tensor:
    """Differentiably, (B, 3, F, H, W): the chunks of a clip through one TIV set, or each through its own."""
    if variant.reuse:
        return model(clips)
    chunks = clips.unflatten(2, (-1, model.config.chunk_frames)).transpose(1, 2)
    return model(chunks.flatten(0, 1)).unflatten(0, chunks.shape[:2]).transpose(1, 2).flatten(2, 3)


@torch.no_grad()
def measure(variant: Variant, model: TivTok, videos: Tensor, long: bool) -> dict[str, list[float]]:
    """Per held-out video, PSNR and SSIM of its first 16 and 32 frames; if ``long`` of 128 frames by TIV sets, too."""
    scores: dict[str, list[float]] = {}
    chunk = model.config.chunk_frames
    cases = [(f"_{n}", n, 1 if variant.reuse else n // chunk) for n in (chunk, 2 * chunk)]
    cases += [(f"_{LONG_FRAMES}_sets_{sets}", LONG_FRAMES, sets) for sets in LONG_SETS if long]
    for name, frames, sets in cases:
        pairs = []
        for video in videos:
            original = video[:frames]
            tokens = model.encode(frames_to_video(original)[None], sets)
            reconstruction = video_to_frames(model.decode(tokens)[0])
            pairs.append((psnr(reconstruction, original).mean(), ssim(reconstruction, original).mean()))
        for metric, values in zip(("psnr", "ssim"), zip(*pairs, strict=True), strict=True):
            scores[metric + name] = [round(float(x), 4) for x in values]
    return scores


def _shrink(frames: Tensor, side: int) -> Tensor:
    """A little larger than what is trained on, so that crops differ."""
    height, width = frames.shape[1:3]
    scale = 1.125 * side / min(height, width)
    return resize(frames, max(side, round(height * scale)), max(side, round(width * scale)))
