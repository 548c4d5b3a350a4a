"""Training of the tokenizer and of both generators; each goes on where it was stopped, and ends alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from examples.generate.flow import Flow
from examples.generate.settings import Settings
from examples.generate.shapes import CLASSES, render
from examples.generate.ways import WAYS, Videos
from tivtok import TivTok
from tivtok.chunks.sharing import mean_tiv
from tivtok.files import replacing
from tivtok.tokens.statistics import LatentStats
from tivtok.training.optim import Muon

SAVE_EVERY = 200
# Added to tokens while the tokenizer trains, as a share of their spread: a generator's are never exact.
JITTER = 0.1


class Trained(NamedTuple):
    """How a training went: the loss of each step, and processor seconds in all."""

    losses: list[float]
    seconds: float


class Latents(NamedTuple):
    """What the flows learn from, and what the tokens were normalised by."""

    videos: Videos
    stats: LatentStats


def fit(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    optimizers: Sequence[Optimizer],
    share_at: Callable[[int], float],
    folder: Path,
) -> Trained:
    """Minimise ``loss_at(step)``, whose random numbers depend on the step alone; ``folder`` keeps the state.

    Args:
        share_at: the share of the optimizers' learning rates that a step takes.
    """
    path = folder / f"{name}.pt"
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    losses: list[float] = []
    spent = 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        losses, spent = state["losses"], state["seconds"]
    begun = time.process_time() - spent
    with Progress() as progress:
        task = progress.add_task(name, total=steps, completed=len(losses))
        for step in range(len(losses), steps):
            for optimizer, of_groups in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, of_groups, strict=True):
                    group["lr"] = rate * share_at(step)
            loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(round(loss.item(), 5))
            progress.update(task, advance=1, description=f"{name}, loss {np.mean(losses[-50:]):.4f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                states = [optimizer.state_dict() for optimizer in optimizers]
                spent = time.process_time() - begun
                state = {"model": model.state_dict(), "optimizers": states, "losses": losses, "seconds": spent}
                with replacing(path) as temporary:
                    torch.save(state, temporary)
    model.eval()
    return Trained(losses, spent)


def adamw_and_muon(model: nn.Module, rates: tuple[float, float]) -> list[Optimizer]:
    """AdamW, and Muon for the matrices inside the blocks, at these learning rates."""
    hidden = {
        key: p for key, p in model.named_parameters() if "blocks." in key and p.ndim == 2 and "modulate" not in key
    }
    rest = [p for key, p in model.named_parameters() if key not in hidden]
    return [
        AdamW(rest, rates[0], betas=(0.9, 0.95), weight_decay=1e-4),
        Muon(list(hidden.values()), rates[1], 1e-4),
    ]


def cosine(steps: int) -> Callable[[int], float]:
    """A twentieth of the steps up, then half a cosine down."""
    return lambda step: min(1.0, (step + 1) / (steps / 20)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train_tokenizer(settings: Settings, folder: Path) -> tuple[TivTok, Trained]:
    """A tokenizer of clips of two chunks that share the mean of their TIV sets (Eq. 6)."""
    torch.manual_seed(settings.seed)
    model = TivTok(settings.tokenizer).train()
    frames = 2 * settings.tokenizer.chunk_frames

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([settings.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        video = render(rng, torch.from_numpy(rng.integers(len(CLASSES), size=settings.tokenizer_batch)), frames)
        tiv, tv = model.encode_chunks(video)
        tiv, tv = (_jittered(x, generator) for x in (mean_tiv(tiv.unbind(1))[:, None], tv))
        decoded = model.decode_groups(model.prepare(tiv), tv, [tv.shape[1]], *video.shape[3:])
        moving = (video - video.mean(2, keepdim=True)).abs()  # a tenth of the picture, most of its worth
        return ((1 + 10 * moving) * (decoded - video).square()).mean()

    steps, optimizers = settings.tokenizer_steps, adamw_and_muon(model, settings.tokenizer_rates)
    return model, fit("tokenizer", model, loss_at, steps, optimizers, cosine(steps), folder)


def _jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + JITTER * x.detach().std((0, 1)) * torch.randn(x.shape, generator=generator)


@torch.no_grad()
def encode(model: TivTok, settings: Settings) -> Latents:
    """The tokens of ``settings.videos`` videos as long as the longest to be generated."""
    tivs, tvs, labels = [], [], torch.arange(settings.videos) % len(CLASSES)
    with Progress() as progress:
        for first in progress.track(range(0, len(labels), 32), description="encoding"):
            rng = np.random.default_rng([settings.seed, 1, first])
            tiv, tv = model.encode_chunks(render(rng, labels[first : first + 32], max(settings.lengths)))
            tivs.append(tiv)
            tvs.append(tv)
    stats = LatentStats.of(zip(tivs, tvs, strict=True), model.model_id)
    tiv, tv = (torch.cat(tivs) - stats.tiv_mean) / stats.tiv_std, (torch.cat(tvs) - stats.tv_mean) / stats.tv_std
    return Latents(Videos(tiv, tv, labels), stats)


def train_flow(way: str, videos: Videos, settings: Settings, folder: Path) -> tuple[Flow, Trained]:
    """A generator, one of `WAYS`. All see the same windows of the same videos in the same order."""
    torch.manual_seed(settings.seed)
    config = settings.tokenizer
    flow = Flow(config, len(CLASSES), settings.width, settings.layers, settings.heads)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([settings.seed, 2, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        groups = int(rng.choice(settings.lengths)) // config.frames_per_group
        return WAYS[way].loss(flow, config, window(videos, rng, groups, settings), generator, 0.0)

    optimizers = adamw_and_muon(flow, settings.rates)
    return flow, fit(way, flow, loss_at, settings.steps, optimizers, cosine(settings.steps), folder)


def window(videos: Videos, rng: np.random.Generator, groups: int, settings: Settings) -> Videos:
    """Parts of random videos, whole chunks; as many that all lengths have about as many frame groups in a batch."""
    per_chunk = settings.tokenizer.groups_per_chunk
    chunks, count = groups // per_chunk, max(4, settings.batch_groups // groups)
    chosen = torch.from_numpy(rng.integers(len(videos.labels), size=count))
    first = torch.from_numpy(rng.integers(videos.tiv.shape[1] - chunks + 1, size=count))
    at_chunk = first[:, None] + torch.arange(chunks)
    at_group = per_chunk * first[:, None] + torch.arange(groups)
    return Videos(videos.tiv[chosen[:, None], at_chunk], videos.tv[chosen[:, None], at_group], videos.labels[chosen])
