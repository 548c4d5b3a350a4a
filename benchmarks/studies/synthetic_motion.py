"""Which model and which training put motion into TV tokens: small runs on motion that nobody can guess.

A clip is a smooth random background and two discs that bounce off the borders, so what stays and what changes is known.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.cards.baseline import still
from benchmarks.studies.ablation_variants import FULL, undivided
from benchmarks.studies.ablations import Budget, _optimizers
from benchmarks.studies.record import Record
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens

out = Console(highlight=False, markup=False)

SIDE = 32
TEST_CLIPS, TEST_FRAMES, TEST_SEED = 64, 64, 999


@dataclass(frozen=True)
class Trial:
    """A model and how it is trained; every step has as many chunks.

    Attributes:
        num_tiv, num_tv, encoder_time, latent_positions, patch_positions, quantizer, fsq_levels: of `TivTokConfig`.
        chunks: of a clip, drawn for each step.
        siblings: the share of steps in which a chunk is decoded through another one's TIV set instead of the mean.
        undivided: one set of tokens for a chunk, in which every token sees all, in both halves, and none is of a frame.
        nested: the share of steps that decode only the first tokens, any numbers of them; above 0 they are nested.
    """

    num_tiv: int = 24
    num_tv: int = 4
    encoder_time: str = "none"
    latent_positions: str = "grid"
    patch_positions: str = "rotary"
    chunks: tuple[int, ...] = (2,)
    siblings: float = 0.0
    undivided: bool = False
    nested: float = 0.0
    quantizer: str = "none"
    fsq_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)

    def build(self) -> TivTok:
        names = ("num_tiv", "num_tv", "encoder_time", "latent_positions", "patch_positions", "quantizer", "fsq_levels")
        changes = {name: getattr(self, name) for name in names}
        model = TivTok(FULL.replace(name="motion", nested=self.nested > 0, **changes))
        return undivided(model) if self.undivided else model


# 40 tokens for 16 frames each.
TRIALS = {
    "24+4": Trial(),
    "24+4, TV anywhere": Trial(latent_positions="tiv-grid"),
    "16+6": Trial(num_tiv=16, num_tv=6),
    "24+4, half siblings": Trial(siblings=0.5),
    "32+2": Trial(num_tiv=32, num_tv=2),
    "24+4, single chunks": Trial(chunks=(1,)),
    "24+4, 1 to 4 chunks": Trial(chunks=(1, 2, 4)),
    "24+4, encoder with time": Trial(encoder_time="rotary"),
    "24+4, learned places": Trial(patch_positions="learned"),
    "undivided, 40": Trial(num_tiv=40, num_tv=0, encoder_time="rotary", chunks=(1,), undivided=True),
}


def synthetic_motion(
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 1000,
    batch: Annotated[int, typer.Option(min=4, help="Chunks in a step.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each trial.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Names of trials; all by default.")] = None,
) -> None:
    """Train and measure every trial, small. Goes on where it was stopped.

    Example: python -m benchmarks.studies synthetic-motion --steps 2500 --seeds 3
    """
    test = moving_discs(np.random.default_rng(TEST_SEED), TEST_CLIPS, TEST_FRAMES)
    settings = {
        "steps": steps,
        "batch": batch,
        "model": FULL.to_dict(),
        "trials": {name: asdict(trial) for name, trial in TRIALS.items()},
        "still picture": psnr(still(test[:, :, :16]), test[:, :, :16]),
    }
    record = Record.open(results / "synthetic-motion.json.gz", settings)
    for seed in range(seeds):
        for name, trial in ((n, t) for n, t in TRIALS.items() if not only or n in only):
            key = f"{name}/{seed}"
            if key not in record.measured:
                begun = time.monotonic()
                measured = measure(train(trial, steps, batch, seed), test)
                record.add(key, measured | {"seconds": round(time.monotonic() - begun)})
                out.print(f"{key}: {measured}")


def moving_discs(rng: np.random.Generator, count: int, frames: int) -> Tensor:
    """(count, 3, frames, SIDE, SIDE) in [-1, 1]."""
    grid = torch.from_numpy(rng.uniform(-0.8, 0.8, (count, 3, 4, 4))).float()
    video = F.interpolate(grid, size=SIDE, mode="bicubic").clamp(-1, 1)[:, :, None].repeat(1, 1, frames, 1, 1)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    for _ in range(2):
        start, speed = (torch.from_numpy(rng.uniform(*r, (count, 2))).float() for r in ((0, SIDE), (-1.2, 1.2)))
        radius = torch.from_numpy(rng.uniform(3, 6, count)).float()[:, None, None, None]
        colour = torch.from_numpy(rng.uniform(-1, 1, (count, 3))).float()[:, :, None, None, None]
        centre = (start[:, None] + speed[:, None] * torch.arange(frames)[:, None]) % (2 * SIDE)
        centre = torch.minimum(centre, 2 * SIDE - centre)[..., None, None]
        distance = ((y - centre[:, :, 0]) ** 2 + (x - centre[:, :, 1]) ** 2).sqrt()
        video = torch.lerp(video, colour, (radius - distance + 0.5).clamp(0, 1)[:, None])
    return video


def train(trial: Trial, steps: int, batch: int, seed: int) -> TivTok:
    torch.manual_seed(seed)
    model = trial.build().train()
    optimizers, schedules = _optimizers(model, Budget(steps, batch, SIDE))
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chunks, siblings = int(rng.choice(trial.chunks)), rng.random() < trial.siblings
        budget = None
        if trial.nested and rng.random() < trial.nested:
            budget = int(rng.integers(1, trial.num_tiv + 1)), int(rng.integers(1, trial.num_tv + 1))
        video = moving_discs(rng, batch // chunks, chunks * FULL.chunk_frames)
        F.mse_loss(model(video, siblings, budget=budget), video).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


@torch.no_grad()
def measure(model: TivTok, video: Tensor) -> dict[str, float]:
    """dB, and correlations of motions, as in `benchmarks.studies.factorisation`."""
    first = video[:, :, :16]
    tokens = model.encode(first)
    mean = tokens.tv.mean(1, keepdim=True)
    change = tokens.tv - mean
    others = (change.sum(0, keepdim=True) - change) / (len(first) - 1)
    other = torch.arange(len(first)).roll(1)

    def decoded(tv: Tensor) -> Tensor:
        return model.decode(Tokens(**{**vars(tokens), "tv": tv}))

    swapped = decoded(tokens.tv[other])
    values = {
        "16 frames": psnr(decoded(tokens.tv), first),
        "frozen TV": psnr(decoded(mean.expand_as(change)), first),
        "others' change of TV": psnr(decoded(mean + others), first),
        "swap, motion with the TV clip": correlation(swapped, first[other]),
        "swap, motion with the TIV clip": correlation(swapped, first),
    }
    for frames in (32, 64):
        clip = video[:, :, :frames]
        for name, sets in (("own sets", frames // 16), ("one set", 1)):
            values[f"{frames} frames, {name}"] = psnr(model.decode(model.encode(clip, sets)), clip)
    return {name: round(value, 3) for name, value in values.items()}


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over clips, dB."""
    return float((10 * torch.log10(4 / (a.clamp(-1, 1) - b).square().mean((1, 2, 3, 4)))).mean())


def correlation(a: Tensor, b: Tensor) -> float:
    """Of what differs from the mean group."""
    return float(F.cosine_similarity((a - still(a)).flatten(1), (b - still(b)).flatten(1)).mean())
