"""The training loop: sample, step, average, measure, save; resumable at every save."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import safetensors
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tivtok.model import TivTok
from tivtok.pretrained import write_tensors
from tivtok.training.config import TrainConfig
from tivtok.training.data import ClipSampler, held_out_clip, load_videos, split_files
from tivtok.training.optim import build_optimizers, schedule

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


def train(config: TrainConfig) -> Path:
    """Train a tokenizer, or resume the run in ``config.output`` if one was interrupted there.

    Returns:
        The folder of the final checkpoint.

    Raises:
        ValueError: the data or the state found do not fit the config.
        TrainingError: the loss is not finite.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config.output.mkdir(parents=True, exist_ok=True)
    training, held_out = split_files(config)
    sampler = ClipSampler(load_videos(training, config.short_sides, config.model.native_size), config)
    test_clips = torch.stack([held_out_clip(path, config) for path in held_out]).to(device)

    torch.manual_seed(config.seed)
    run = _Run(TivTok(config.model).to(device), config)
    first_step = run.load(config.output / STATE_FILE)
    forward = cast("Callable[[Tensor], Tensor]", torch.compile(run.model) if config.compile else run.model)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TimeRemainingColumn()) as progress, open(config.output / LOG_FILE, "a") as log:
        task = progress.add_task("train", total=config.steps, completed=first_step)
        started, recent = time.monotonic(), []
        for step in range(first_step, config.steps):
            recent.append(run.step(forward, sampler.batch(step).to(device), step))
            progress.update(task, advance=1, description=f"loss {recent[-1]:.4f}")
            done = step + 1
            if done % config.evaluate_every == 0 or done == config.steps:
                record = {
                    "step": done,
                    "loss": sum(recent) / len(recent),
                    "held_out_psnr": psnr(run.average, test_clips),
                    "seconds": round(time.monotonic() - started, 1),
                }
                log.write(json.dumps(record) + "\n")
                log.flush()
                progress.console.print(record)
                recent = []
            if done % config.save_every == 0 or done == config.steps:
                run.save(config.output / STATE_FILE, done)
                run.average.save_pretrained(config.output / "checkpoint")
    return config.output / "checkpoint"


@torch.no_grad()
def psnr(model: TivTok, clips: Tensor) -> float:
    """Mean over clips (B, 3, F, H, W) in [-1, 1] of the PSNR in dB over the whole clip, after clamping."""
    model.eval()
    errors = [F.mse_loss(model(clip[None]).clamp(-1, 1), clip[None]) for clip in clips]
    return sum(10 * math.log10(4 / float(e)) for e in errors) / len(errors)


class _Run:
    """Everything that has to survive an interruption."""

    def __init__(self, model: TivTok, config: TrainConfig) -> None:
        self.config = config
        self.model = model
        self.optimizers = build_optimizers(model, config)
        self.peak = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))

    @property
    def average(self) -> TivTok:
        """The model with averaged weights."""
        return cast(TivTok, self._average.module)

    def step(self, forward: Callable[[Tensor], Tensor], video: Tensor, step: int) -> float:
        config = self.config
        fraction = schedule(step, config)
        for optimizer, rates in zip(self.optimizers, self.peak, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fraction
        loss_of = F.l1_loss if config.reconstruction == "l1" else F.mse_loss
        loss = loss_of(forward(video), video)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {step}; the last state is in {config.output}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._average.update_parameters(self.model)
        return loss.item()

    def save(self, path: Path, step: int) -> None:
        """One safetensors file: weights, averaged weights, optimizer tensors; the step in its metadata."""
        tensors = {f"model.{n}": x for n, x in self.model.state_dict().items()}
        tensors |= {f"average.{n}": x for n, x in self._average.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            tensors |= {f"optimizer.{i}.{n}": x for n, x in _flat_state(optimizer).items()}
        write_tensors(path, tensors, {"step": str(step)})

    def load(self, path: Path) -> int:
        """Restore what `save` wrote; the step to go on from, 0 where there is nothing yet."""
        if not path.exists():
            return 0
        with safetensors.safe_open(path, framework="pt") as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
            self._average.load_state_dict(part("average."))
        except RuntimeError as error:
            raise ValueError(f"{path} is the state of a different model: {error}") from None
        for i, optimizer in enumerate(self.optimizers):
            _restore_state(optimizer, part(f"optimizer.{i}."))
        return step


def _flat_state(optimizer: Optimizer) -> dict[str, Tensor]:
    return {f"{i}.{name}": x for i, state in optimizer.state_dict()["state"].items() for name, x in state.items()}


def _restore_state(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    whole["state"] = {}
    for key, x in tensors.items():
        index, name = key.split(".", 1)
        whole["state"].setdefault(int(index), {})[name] = x
    optimizer.load_state_dict(whole)
