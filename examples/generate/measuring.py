"""What a generated frame costs, and whether it shows what it should."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from examples.generate.flow import Flow, Sampling
from examples.generate.settings import Settings
from examples.generate.shapes import CLASSES, MOTIONS, detect, render
from examples.generate.ways import WAYS, drawn_tokens
from tivtok import TivTok
from tivtok.tokens.statistics import LatentStats

ON_ITS_PATH = 2.0  # pixels off the nearest path of its class, at most

# Classes (B,) and a number of frames -> a video of each, (B, 3, frames, SIDE, SIDE).
Source = Callable[[Tensor, int], Tensor]


def generated(way: str, flow: Flow, model: TivTok, stats: LatentStats, settings: Settings) -> Source:
    def videos(labels: Tensor, frames: int) -> Tensor:
        generator = torch.Generator().manual_seed(settings.seed + 3)
        groups = frames // model.config.frames_per_group
        drawn = WAYS[way].draw(flow, model.config, labels, groups, settings.sampling, generator)
        return model.decode(drawn_tokens(model.config, stats, *drawn, fps=25.0)).clamp(-1, 1)

    return videos


def real(labels: Tensor, frames: int) -> Tensor:
    return render(np.random.default_rng(3), labels, frames)


def reconstructed(model: TivTok, shared: bool) -> Source:
    """True videos through the tokenizer, with one TIV set or with one for each chunk: what a generator cannot beat."""

    def videos(labels: Tensor, frames: int) -> Tensor:
        sets = 1 if shared else -(-frames // model.config.chunk_frames)
        return model.decode(model.encode(real(labels, frames), sets)).clamp(-1, 1)

    return videos


@torch.no_grad()
def quality(videos: Source, frames: int, settings: Settings) -> dict[str, float]:
    """By the detector, over ``settings.drawn`` videos of each class."""
    labels = torch.arange(len(CLASSES)).repeat(settings.drawn)
    seen = [detect(video) for few in labels.split(24) for video in videos(few, frames)]
    errors = [s.errors[label % len(MOTIONS)] for s, label in zip(seen, labels.tolist(), strict=True)]
    right = [s.is_of(label) for s, label in zip(seen, labels.tolist(), strict=True)]
    return {
        "class": float(np.mean(right)),
        "colour": float(np.mean([s.colour == k // len(MOTIONS) for s, k in zip(seen, labels.tolist(), strict=True)])),
        "on its path": float(np.mean([s.colour >= 0 and e <= ON_ITS_PATH for s, e in zip(seen, errors, strict=True)])),
        "pixels off": float(np.median(errors)),
        "drift": float(np.mean([s.drift for s in seen])),
    }


@torch.no_grad()
def cost(way: str, flow: Flow, settings: Settings, frames: int) -> dict[str, float]:
    """Tokens, FLOPs and processor seconds per frame, of the generator alone: decoding is the same for both."""
    config, groups = settings.tokenizer, frames // settings.tokenizer.frames_per_group
    draw = WAYS[way].draw
    generator = torch.Generator().manual_seed(0)
    one, dozen = (torch.arange(count) % len(CLASSES) for count in (1, 12))
    with FlopCounterMode(display=False) as counter:
        tiv, _ = draw(flow, config, one, groups, Sampling(1), generator)
    begun = time.process_time()
    draw(flow, config, dozen, groups, settings.sampling, generator)
    return {
        "tokens": config.num_tokens(frames, tiv.shape[1]) / frames,
        "flops": counter.get_total_flops() * settings.euler_steps / frames,
        "seconds": (time.process_time() - begun) / 12 / frames,
    }


def measure(model: TivTok, stats: LatentStats, flows: dict[str, Flow], settings: Settings) -> dict[str, dict]:
    """By row of the table and number of frames."""
    sources: dict[str, Source] = {
        "true videos": real,
        "reconstructed, one TIV set": reconstructed(model, shared=True),
        "reconstructed, a set for each chunk": reconstructed(model, shared=False),
    }
    sources |= {name: generated(name, flow, model, stats, settings) for name, flow in flows.items()}
    measured: dict[str, dict] = {}
    for name, videos in sources.items():
        measured[name] = {str(frames): quality(videos, frames, settings) for frames in settings.lengths}
    for name, flow in flows.items():
        for frames in settings.lengths:
            measured[name][str(frames)] |= cost(name, flow, settings, frames)
    return measured
