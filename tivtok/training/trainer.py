"""The state of a run and its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn

from tivtok.model.blocks import Block
from tivtok.model.config import TivTokConfig
from tivtok.model.quantizer import SoftVQ
from tivtok.tokenizer import TivTok
from tivtok.training.adversary import Adversary
from tivtok.training.average import WeightAverage
from tivtok.training.config import TrainConfig
from tivtok.training.diffaug import NUM_DRAWS
from tivtok.training.discriminator import DinoFeatures
from tivtok.training.losses import (
    EntropyPenalty,
    LastLayer,
    Perceptual,
    adaptive_weight,
    load_perceptual,
    reconstruction_terms,
)
from tivtok.training.optim import build_optimizers, schedule
from tivtok.training.randomness import Purpose, generator
from tivtok.training.state import model_state, optimizer_state, part, restore_model, restore_optimizers


class Trainer:
    """Model, averaged weights, optimizers, discriminator.

    Attributes:
        model: as accelerate wraps it for the processes there are.
        optimizers: the model's own.
        average: its averaged weights.
        adversary: None without an adversarial term.
        bad_steps: how many steps were skipped, their loss or gradient not finite.
    """

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, build: Callable[[TivTokConfig], TivTok] = TivTok
    ) -> None:
        """
        Args:
            build: makes the model, with random weights.

        Raises:
            ValueError: weights of LPIPS or DINOv2 are missing, ``config.frozen`` names none or leaves none, or the run
                cannot be made with this kind of FSDP.
        """
        check_sharding(config, accelerator)
        torch.manual_seed(config.seed)
        self.config = config
        self.accelerator = accelerator
        model = build(config.model).to(accelerator.device)
        freeze(model, config.frozen)
        self.last_layer = LastLayer(model)
        softvq = model.quantizer if isinstance(model.quantizer, SoftVQ) else None
        self.entropy = EntropyPenalty(softvq) if softvq is not None and config.entropy else None
        if config.activation_checkpointing:
            for block in (m for m in model.modules() if isinstance(m, Block)):
                block.recompute = True
        if config.compile:
            model.compile()
        optimizers = build_optimizers(model, config)
        self.model, *prepared = accelerator.prepare(model, *optimizers)
        self.optimizers = [o.optimizer for o in cast("list[AcceleratedOptimizer]", prepared)]
        self.peak = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.average = WeightAverage(self.model, config.ema)
        perceptual = load_perceptual(config)
        self.perceptual = cast("Perceptual | None", perceptual and perceptual.to(accelerator.device))
        self.adversary: Adversary | None = None
        if config.adversarial is not None:
            features = DinoFeatures.load(config.adversarial.dinov2, config.adversarial.image_size)
            self.adversary = Adversary(features, config, accelerator)
        self.bad_steps = 0

    def step(self, video: Tensor, step: int) -> dict[str, float] | None:
        """One step on this process's share (B, 3, F, H, W) of the batch.

        Returns:
            What to log, over all processes; None for a bad step, which has changed nothing but the count of them.
        """
        config = self.config
        torch.manual_seed(int(generator(config.seed, Purpose.MODEL, step).integers(2**62)))
        frames, draws = self._draw(step, video)
        siblings = bool(generator(config.seed, Purpose.SIBLINGS, step).random() < config.siblings)
        rate = schedule(step, config)
        adversary = self.adversary if config.adversarial and step >= config.adversarial.start else None

        without_tv = self._draw_without_tv(step, video)
        budget = self._draw_budget(step)

        outputs, terms = [], []
        by_clip = (video, draws[0], without_tv, *self._draw_noise(step, video))
        parts = list(zip(*(x.chunk(config.accumulate) for x in by_clip), strict=True))
        for number, (clips, clip_draws, its_without_tv, *noise) in enumerate(parts, 1):
            with self.accelerator.no_sync(self.model) if number < len(parts) else nullcontext():
                alone = its_without_tv if config.without_tv else None
                added = tuple(noise) or None
                model = partial(self.model, siblings=siblings, without_tv=alone, budget=budget, noise=added)
                output, its_terms = self._backward(model, clips, frames, clip_draws, adversary, step, 1 / len(parts))
            outputs.append(output)
            terms.append(its_terms)
        means = {name: torch.stack([x[name] for x in terms]).mean() for name in terms[0]}
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        stats = self.accelerator.reduce(torch.stack(list(means.values())), "mean")
        good = bool(torch.isfinite(stats.sum() + norm))
        log = dict(zip(means, stats.tolist(), strict=True)) | {"gradient_norm": float(norm)}
        if good and adversary is not None:
            # Before the model's own update, so that a step changes both or nothing.
            fake = torch.cat(outputs)[:, :, frames]
            again = self._draw_again(step, video)
            judged = adversary.step(video[:, :, frames], fake, draws[1:].flatten(0, 1), again, rate)
            good = judged is not None
            log |= judged or {}
        if good:
            for optimizer, peak in zip(self.optimizers, self.peak, strict=True):
                for group, learning_rate in zip(optimizer.param_groups, peak, strict=True):
                    group["lr"] = rate * learning_rate
                optimizer.step()
            self.average.update(step)
        else:
            self.bad_steps += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return log if good else None

    def autocast(self) -> torch.autocast:
        """The precision of the run, for a ``with`` block."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def state(self) -> dict[str, Tensor]:
        """Everything above as whole tensors by name, on the CPU; on the main process, others get nothing.

        All processes must call it together.
        """
        tensors = {f"model.{name}": x for name, x in model_state(self.model).items()}
        with self.average.applied():
            tensors |= {f"average.{name}": x for name, x in model_state(self.model).items()}
        tensors |= {f"optimizer.{name}": x for name, x in optimizer_state(self.model, self.optimizers).items()}
        if (adversary := self.adversary) is not None:
            tensors |= {f"discriminator.{name}": x for name, x in model_state(adversary.heads).items()}
            optimizer = optimizer_state(adversary.heads, [adversary.optimizer])
            tensors |= {f"discriminator_optimizer.{name}": x for name, x in optimizer.items()}
            tensors["lecam"] = adversary.lecam.averages.cpu()
        return tensors if self.accelerator.is_main_process else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`, with the same tensors on every process.

        Raises:
            ValueError: they are of another model, optimizer or discriminator.
        """
        self.begin_from(tensors)
        restore_model(self.model, part(tensors, "model."))
        restore_optimizers(self.model, self.optimizers, part(tensors, "optimizer."))
        if (adversary := self.adversary) is not None:
            restore_optimizers(adversary.heads, [adversary.optimizer], part(tensors, "discriminator_optimizer."))

    def begin_from(self, tensors: dict[str, Tensor]) -> None:
        """Averaged weights and (where both have one) discriminator from the `state` of another run.

        Weights that it lacks may be there if they are zero in a new model: a part that an option adds.

        Raises:
            ValueError: they are of another model or discriminator.
        """
        new = TivTok(self.config.model).state_dict()
        added = {name: x for name, x in new.items() if not x.any()}
        restore_model(self.model, added | part(tensors, "average."))
        self.average.restart()
        heads = part(tensors, "discriminator.")
        if self.adversary is not None and heads:
            restore_model(self.adversary.heads, heads)
            self.adversary.lecam.averages.copy_(tensors["lecam"])

    def _draw(self, step: int, video: Tensor) -> tuple[Tensor, Tensor]:
        """Frames for the feature losses, the same for all clips, and random numbers (3, B, NUM_DRAWS) for this
        process's share of them, ``video``."""
        config, rng = self.config, generator(self.config.seed, Purpose.LOSS, step)
        batch, _, length = video.shape[:3]
        frames = rng.choice(length, min(config.feature_frames or length, length), replace=False)
        draws = rng.random((3, config.batch_size, NUM_DRAWS), dtype="float32")
        return torch.from_numpy(frames).sort().values, self._own(draws, batch)

    def _draw_again(self, step: int, video: Tensor) -> Tensor:
        """Random numbers (2 B, NUM_DRAWS) for the second augmentation of this process's real and fake clips."""
        shape = (2, self.config.batch_size, NUM_DRAWS)
        draws = generator(self.config.seed, Purpose.CONSISTENCY, step).random(shape, dtype="float32")
        return self._own(draws, len(video)).flatten(0, 1)

    def _draw_without_tv(self, step: int, video: Tensor) -> Tensor:
        """Which of this process's clips are decoded without their TV tokens: bool (B,)."""
        config = self.config
        drawn = generator(config.seed, Purpose.WITHOUT_TV, step).random((1, config.batch_size)) < config.without_tv
        return self._own(drawn, len(video))[0].to(video.device)

    def _draw_noise(self, step: int, video: Tensor) -> list[Tensor]:
        """What is added to this process's TIV sets (B, chunks, N_TIV, D) and TV tokens (B, T, N_TV, D), if anything."""
        config, model = self.config, self.config.model
        if not config.quantization_noise:
            return []
        rng, groups = generator(config.seed, Purpose.NOISE, step), model.num_groups(video.shape[2])
        counts = (-(-groups // model.groups_per_chunk), model.num_tiv), (groups, model.num_tv)
        drawn = (rng.random((1, config.batch_size, *count, model.latent_dim), dtype="float32") for count in counts)
        return [config.quantization_noise * (self._own(x, len(video))[0].to(video.device) - 0.5) for x in drawn]

    def _own(self, drawn: np.ndarray, batch: int) -> Tensor:
        """Of numbers (n, clips of a step, ...) those for this process's ``batch`` clips: (n, ``batch``, ...)."""
        first = self.accelerator.process_index * batch
        return torch.from_numpy(drawn[:, first : first + batch])

    def _draw_budget(self, step: int) -> tuple[int, int] | None:
        """How many TIV and TV tokens are decoded in this step, None for all."""
        rng, model = generator(self.config.seed, Purpose.NESTED, step), self.config.model
        if rng.random() >= self.config.nested:
            return None
        return int(rng.integers(min(1, model.num_tiv), model.num_tiv + 1)), int(rng.integers(1, model.num_tv + 1))

    def _backward(
        self,
        model: Callable[[Tensor], Tensor],
        video: Tensor,
        frames: Tensor,
        draws: Tensor,
        adversary: Adversary | None,
        step: int,
        share: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add ``share`` of the gradient for some clips to the model's; their reconstruction and the terms, detached."""
        config = self.config
        with self.autocast():
            reconstruction = model(video).float()
            output = reconstruction.detach().requires_grad_()
            terms = reconstruction_terms(output, video, frames, self.perceptual, config, step)
        total = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(total, output)
        if adversary is not None:
            with self.autocast():
                terms["adversarial"] = adversary.loss(output[:, :, frames], draws)
            (push,) = torch.autograd.grad(terms["adversarial"], output)
            terms["adaptive_weight"] = self._balance(gradient, push)
            gradient = gradient + adversary.config.weight * terms["adaptive_weight"] * push
        loss = (reconstruction * gradient).sum()
        if self.entropy is not None:
            terms["entropy"] = config.entropy * self.entropy.take()
            loss = loss + terms["entropy"]
        self.accelerator.backward(share * loss)
        return output.detach(), {name: x.detach() for name, x in terms.items()}

    def _balance(self, gradient: Tensor, push: Tensor) -> Tensor:
        """`adaptive_weight` for these clips of all processes."""
        at_weights = torch.stack([self.last_layer.gradient(x) for x in (gradient, push)])
        return adaptive_weight(*self.accelerator.reduce(at_weights, "mean"))


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Leave weights out of training.

    Args:
        names: of weights, or beginnings of their names up to a dot.

    Raises:
        ValueError: a name is of no weight, or no weight is left.
    """
    weights = dict(model.named_parameters())
    for name in names:
        meant = [x for whole, x in weights.items() if f"{whole}.".startswith(f"{name}.")]
        if not meant:
            parts = sorted({whole.split(".")[0] for whole in weights})
            raise ValueError(f'frozen must name weights of {", ".join(parts)}, got "{name}"')
        for x in meant:
            x.requires_grad_(False)
    if not any(x.requires_grad for x in weights.values()):
        raise ValueError(f"frozen must leave something to train, got {list(names)}")


def check_sharding(config: TrainConfig, accelerator: Accelerator) -> None:
    """Check that the run can be made with the FSDP that was asked for, if it was.

    Raises:
        ValueError: it cannot.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise ValueError("FSDP must be version 2, got 1: accelerate launch --fsdp_version 2")
        if config.optimizer == "muon":
            raise ValueError('optimizer must be "adamw" under FSDP, got "muon", which needs whole matrices')
