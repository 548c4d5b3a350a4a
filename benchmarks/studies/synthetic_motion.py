"""The paper's ablations, and what else puts motion into TV tokens: small models on motion that nobody can guess.

A clip is a smooth random background and discs that bounce off the borders, so what stays and what changes is known.
Each model is trained on single chunks, measured, trained on through the mean TIV set of one to four chunks (the paper's
long-video stage, Sec. 3.5), and measured again.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.cards.baseline import best_resampling, dct_coefficients, still
from benchmarks.studies.ablation_variants import FULL, build
from benchmarks.studies.record import Record
from benchmarks.studies.synthetic_motion_report import write_report
from tivtok.tokenizer import TivTok
from tivtok.training.config import TrainConfig
from tivtok.training.optim import build_optimizers, schedule

out = Console(highlight=False, markup=False)

SIDE = 32
TEST_CLIPS, TEST_FRAMES, TEST_SEED = 64, 64, 999
CLIPS = 32  # to measure on here
CHUNK = FULL.chunk_frames
LENGTHS = (16, 32, 64, 128)  # frames
LONG_CHUNKS = (1, 2, 4)  # of a clip of the long-video stage, drawn for each step
RATES = {"learning_rate": 7e-3, "muon_learning_rate": 0.025}


@dataclass(frozen=True)
class World:
    """What is to be seen in a clip.

    Attributes:
        discs: their number.
        radius, edge: of a disc, and over how much its border fades, in pixels.
        speed: of a disc down and across, in pixels per frame, either way.
        colour: how far the channels of a disc are from grey, either way.
        background: random values down and across, interpolated.
    """

    discs: int = 2
    radius: tuple[float, float] = (3, 6)
    edge: float = 1.0
    speed: tuple[float, float] = (0.0, 1.2)
    colour: tuple[float, float] = (0.0, 1.0)
    background: int = 4


# Large, fast and strong against a simple background, so that a still picture is poor and small models soon above it.
MOTION = World(radius=(7, 10), edge=8.0, speed=(0.8, 1.6), colour=(0.5, 1.0), background=3)


@dataclass(frozen=True)
class Trial:
    """A model and how it is trained.

    Attributes:
        changes: of `BASE`.
        dense_encoder, joint_decoder: without SIF, without broadcasting.
        siblings: the share of the long-video stage's steps in which a chunk is decoded through another one's TIV set
            instead of the mean.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    dense_encoder: bool = False
    joint_decoder: bool = False
    siblings: float = 0.0

    def build(self) -> TivTok:
        return build(BASE.replace(**self.changes), self.dense_encoder, self.joint_decoder)


BASE = FULL.replace(name="motion", num_tv=4, latent_dim=8, encoder_time="none", initialization="local")
# The paper's encoder knows the time, and a dense one must: without, its TV tokens are the same for every frame group.
ABLATIONS = {
    f"{places}, {encoder}, {decoder}": Trial(
        {"latent_positions": places, "encoder_time": "rotary"}, encoder == "dense", decoder == "joint"
    )
    for places in ("none", "grid")
    for encoder in ("SIF", "dense")
    for decoder in ("IB", "joint")
}
OTHERS = {
    "24+4": Trial(),
    "undivided, 40": Trial({"num_tiv": 40, "num_tv": 0, "encoder_time": "rotary"}, True, True),
    "16+6": Trial({"num_tiv": 16, "num_tv": 6}),
    "24+4, ViT initialisation": Trial({"initialization": "vit"}),
    "24+4, learned places": Trial({"patch_positions": "learned"}),
    "24+4, half siblings": Trial(siblings=0.5),
}
TRIALS = ABLATIONS | OTHERS


def synthetic_motion(
    results: Annotated[Path, typer.Option(help="Where numbers, tables and picture go.")] = Path("docs/results"),
    steps: Annotated[int, typer.Option(min=2, help="On single chunks; half as many follow on longer clips.")] = 600,
    batch: Annotated[int, typer.Option(min=4, help="Chunks in a step.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each trial.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Names of trials; all by default.")] = None,
) -> None:
    """Train and measure every trial, small: the ablations with all seeds first. Goes on where it was stopped.

    Example: python -m benchmarks.studies synthetic-motion
    """
    test = moving_discs(np.random.default_rng(TEST_SEED), CLIPS, max(LENGTHS), MOTION)
    settings = {
        "steps": steps,
        "batch": batch,
        "rates": RATES,
        "model": BASE.to_dict(),
        "world": asdict(MOTION),
        "clips": CLIPS,
        "long chunks": LONG_CHUNKS,
        "trials": {name: asdict(trial) for name, trial in TRIALS.items()},
    }
    record = Record.open(results / "synthetic-motion.json.gz", settings)
    if "baselines" not in record.measured:
        record.add("baselines", baselines(test))
    for trials in (ABLATIONS, OTHERS):
        for seed in range(seeds):
            for name, trial in ((n, t) for n, t in trials.items() if not only or n in only):
                if (key := f"{name}/{seed}") not in record.measured:
                    record.add(key, run(trial, steps, batch, seed, test))
                    out.print(f"{key}: {record.measured[key]}")
                    write_report(record, ABLATIONS, OTHERS)


def moving_discs(rng: np.random.Generator, count: int, frames: int, world: World = World()) -> Tensor:
    """(count, 3, frames, SIDE, SIDE) in [-1, 1]."""

    def either_way(size: tuple[float, float], number: int) -> Tensor:
        drawn = torch.from_numpy(rng.uniform(-1, 1, (count, number))).float()
        return drawn.sign() * torch.lerp(torch.tensor(size[0]), torch.tensor(size[1]), drawn.abs())

    grid = torch.from_numpy(rng.uniform(-0.8, 0.8, (count, 3, world.background, world.background))).float()
    video = F.interpolate(grid, size=SIDE, mode="bicubic").clamp(-1, 1)[:, :, None].repeat(1, 1, frames, 1, 1)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    for _ in range(world.discs):
        start, speed = torch.from_numpy(rng.uniform(0, SIDE, (count, 2))).float(), either_way(world.speed, 2)
        radius = torch.from_numpy(rng.uniform(*world.radius, count)).float()[:, None, None, None]
        colour = either_way(world.colour, 3)[:, :, None, None, None]
        centre = (start[:, None] + speed[:, None] * torch.arange(frames)[:, None]) % (2 * SIDE)
        centre = torch.minimum(centre, 2 * SIDE - centre)[..., None, None]
        distance = ((y - centre[:, :, 0]) ** 2 + (x - centre[:, :, 1]) ** 2).sqrt()
        video = torch.lerp(video, colour, ((radius - distance) / world.edge + 0.5).clamp(0, 1)[:, None])
    return video


def run(trial: Trial, steps: int, batch: int, seed: int, test: Tensor) -> dict[str, Any]:
    """What was measured after single chunks, after the long-video stage, if there is a set to share, and the seconds of
    a processor that training took."""
    torch.manual_seed(seed)
    model, rng = trial.build(), np.random.default_rng(seed)
    begun = time.process_time()
    train(model, steps, batch, rng, (1,))
    seconds = time.process_time() - begun
    if not model.config.num_tv:  # nothing to share
        return {"single": measure(model, test, LENGTHS), "seconds": round(seconds)}
    measured: dict[str, Any] = {"single": measure(model, test, LENGTHS[:2])}
    begun = time.process_time()
    train(model, steps // 2, batch, rng, LONG_CHUNKS, trial.siblings)
    seconds += time.process_time() - begun
    measured["long"] = measure(model, test, LENGTHS)
    return measured | {"seconds": round(seconds)}


def train(
    model: TivTok, steps: int, batch: int, rng: np.random.Generator, chunks: tuple[int, ...], siblings: float = 0.0
) -> None:
    """``steps`` of ``batch`` chunks each, in clips of as many ``chunks`` as are drawn for the step, with the optimizers
    of `tivtok train`, whose rates rise for a twentieth of the steps and then fall to 0."""
    config = TrainConfig(
        output=Path(),
        data=Path(),
        model=model.config,
        steps=steps,
        optimizer="muon",
        warmup_steps=steps // 20,
        **RATES,
    )
    optimizers = build_optimizers(model, config)
    schedules = [LambdaLR(optimizer, partial(schedule, config=config)) for optimizer in optimizers]
    model.train()
    for _ in range(steps):
        number, by_siblings = int(rng.choice(chunks)), rng.random() < siblings
        video = moving_discs(rng, batch // number, number * CHUNK, MOTION)
        F.mse_loss(model(video, by_siblings), video).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    model.eval()


@torch.no_grad()
def measure(model: TivTok, video: Tensor, lengths: tuple[int, ...]) -> dict[str, float]:
    """dB at so many frames, and what TV tokens hold of the first chunk; means over clips.

    Motion is what differs from the still picture, compared by cosines, as in `benchmarks.studies.factorisation`.
    """
    first = video[:, :, :CHUNK]
    tokens = model.encode(first)
    decoded = model.decode(tokens)
    values = {
        "16, own sets": psnr(decoded, first),
        "16, one set": psnr(decoded, first),
        "motion kept": correlation(decoded, first),
    }
    if model.config.num_tv:
        mean = tokens.tv.mean(1, keepdim=True)
        change = tokens.tv - mean
        others = (change.sum(0, keepdim=True) - change) / (len(first) - 1)
        other = torch.arange(len(first)).roll(1)
        frozen, clock, swapped = (
            model.decode(replace(tokens, tv=tv)) for tv in (mean.expand_as(change), mean + others, tokens.tv[other])
        )
        values |= {
            "frozen TV": psnr(frozen, first),
            "others' change of TV": psnr(clock, first),
            "swap, motion with the TV clip": correlation(swapped, first[other]),
            "swap, motion with the TIV clip": correlation(swapped, first),
            "change of TV": float((change.square().mean() / tokens.tv.square().mean()).sqrt()),
        }
    for frames in lengths[1:]:
        clip = video[:, :, :frames]
        for name, sets in (("own sets", frames // CHUNK), ("one set", 1)):
            if sets > 1 or model.config.num_tv:
                values[f"{frames}, {name}"] = psnr(model.decode(model.encode(clip, sets)), clip)
    return {name: round(value, 6 if name == "change of TV" else 3) for name, value in values.items()}


def baselines(video: Tensor) -> dict[str, dict[str, float]]:
    """By number of frames, dB of a lossless still picture, and of resampling and DCT coefficients of as many numbers as
    the tokens of `BASE` with one set, and with a set for each chunk."""
    found: dict[str, dict[str, float]] = {}
    for frames in LENGTHS:
        clip = video[:, :, :frames]
        found[str(frames)] = {"still picture": psnr(still(clip), clip)}
        for name, sets in (("one set", 1), ("own sets", frames // CHUNK)):
            numbers = BASE.num_tokens(frames, sets) * BASE.latent_dim
            found[str(frames)] |= {
                f"resampling, {name}": psnr(best_resampling(clip, numbers)[1], clip),
                f"DCT, {name}": psnr(dct_coefficients(clip, numbers), clip),
            }
    return {frames: {name: round(value, 3) for name, value in its.items()} for frames, its in found.items()}


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over clips, dB."""
    return float((10 * torch.log10(4 / (a.clamp(-1, 1) - b).square().mean((1, 2, 3, 4)))).mean())


def correlation(a: Tensor, b: Tensor) -> float:
    """Of what differs from the mean group."""
    return float(F.cosine_similarity((a - still(a)).flatten(1), (b - still(b)).flatten(1)).mean())
