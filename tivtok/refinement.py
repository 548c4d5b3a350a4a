"""Improving tokens through the frozen decoder: gradient steps on the tokens, none on the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tivtok.model.config import TivTokConfig
from tivtok.tokens import Tokens
from tivtok.video.frames import to_float

if TYPE_CHECKING:
    from tivtok.tokenizer import TivTok

# Adam's first step size, in root mean squares of the tokens; it falls to zero along a cosine.
STEP_SIZE = 0.15

OnStep = Callable[[int, int], object]


def refine(
    model: TivTok, tokens: Tokens, video: Tensor, steps: int, on_step: OnStep = lambda done, total: None
) -> Tokens:
    """Lower the squared error of the decoded video by ``steps`` steps of Adam on TIV and TV tokens.

    Each TIV set is optimised together with the TV tokens of all frame groups that share it, a chunk of frames at a
    time, so that memory does not grow with the length of the video. The result is never worse than ``tokens``: each
    video keeps the best of all steps. Nothing is random.

    Args:
        tokens: of ``video``, made by ``model``; where chunks end does not matter.
        video: (B, 3, F, H, W) as ``TivTok.encode`` takes it, on any device; it may be mapped from a file.
        steps: for each TIV set, at least 1; each costs a decoding and its gradient.
        on_step: called with the steps done and the steps of all TIV sets, for a progress bar.

    Returns:
        tokens on the device of ``tokens``, in float32 (or float64, where they are).

    Raises:
        ValueError: as in `check_refinable`, or ``tokens`` has counts.
        TokensError: another model made the tokens.
    """
    check_refinable(model.config, steps)
    if tokens.counts is not None:
        raise ValueError("tokens whose numbers differ cannot be refined: refine them before they are chosen")
    model.check_ours(tokens)
    per_group = model.config.frames_per_group
    with torch.inference_mode(False), torch.enable_grad():
        tiv, tv = (_copied(x) for x in (tokens.tiv, tokens.tv))
        sets = tokens.sets_of(torch.arange(tv.shape[1]))
        total = steps * tiv.shape[1]
        for one in range(tiv.shape[1]):
            groups = (sets == one).nonzero().squeeze(1)
            frames = (groups[:, None] * per_group + torch.arange(per_group)).flatten()
            part = _Part(model, video, frames[frames < tokens.num_frames])
            better = part.refine(
                tiv[:, one : one + 1], tv[:, groups], steps, partial(_report, on_step, one * steps, total)
            )
            tiv[:, one : one + 1], tv[:, groups] = better
    return replace(tokens, tiv=tiv, tv=tv)


def check_refinable(config: TivTokConfig, steps: int) -> None:
    """
    Raises:
        ValueError: ``steps`` is below 1, or the model has a quantizer, whose tokens cannot be moved freely.
    """
    if steps < 1:
        raise ValueError(f"refine must be at least 1 step, got {steps}")
    if config.quantizer != "none":
        raise ValueError(f'refine is for models with quantizer "none", got one with {config.quantizer!r}')


def _report(on_step: OnStep, before: int, total: int, done: int) -> None:
    on_step(before + done, total)


def _copied(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)


class _Part:
    """The frames of a video that share a TIV set."""

    def __init__(self, model: TivTok, video: Tensor, frames: Tensor) -> None:
        self.model = model
        self.video = video
        self.frames = frames

    def refine(self, tiv: Tensor, tv: Tensor, steps: int, on_step: Callable[[int], object]) -> tuple[Tensor, Tensor]:
        """Take ``steps`` steps from tokens (B, 1, N_TIV, D) and (B, T, N_TV, D); returns the best of each video."""
        tokens = [x.detach().clone().requires_grad_() for x in (tiv, tv)]
        groups = [{"params": [x], "lr": STEP_SIZE * float(x.detach().square().mean().sqrt())} for x in tokens]
        adam = torch.optim.Adam(groups)
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda n: (1 + math.cos(math.pi * n / steps)) / 2)
        best, least = [tiv, tv], tiv.new_full(tiv.shape[:1], math.inf)
        for step in range(steps + 1):
            errors = self._add_gradient(tokens, wanted=step < steps)
            better = errors < least
            least = errors.minimum(least)
            best = [torch.where(better[:, None, None, None], x.detach(), y) for x, y in zip(tokens, best, strict=True)]
            if step < steps:
                adam.step()
                adam.zero_grad()
                falling.step()
                on_step(step + 1)
        return best[0], best[1]

    def _add_gradient(self, tokens: list[Tensor], wanted: bool) -> Tensor:
        """Compute the squared error of each video, (B,), and add its gradient, if ``wanted``, to the tokens'."""
        tiv, tv = tokens
        config, like = self.model.config, next(self.model.parameters())
        errors = tiv.new_zeros(tiv.shape[0])
        for start in range(0, tv.shape[1], config.groups_per_chunk):
            run = tv[:, start : start + config.groups_per_chunk]
            first = start * config.frames_per_group
            frames = self.frames[first : first + config.chunk_frames]
            truth = to_float(self.video[:, :, frames.to(self.video.device)].to(like.device), tiv.dtype)
            with torch.set_grad_enabled(wanted):
                made = self.model.decode_groups(self.model.prepare(tiv), run, [run.shape[1]], *truth.shape[3:])
                error = (made[:, :, : truth.shape[2]] - truth).square().flatten(1).sum(1)
            if wanted:
                for x, gradient in zip(tokens, torch.autograd.grad(error.sum(), tokens), strict=True):
                    x.grad = gradient if x.grad is None else x.grad + gradient
            errors += error.detach().to(errors)
        return errors
