"""How many tokens are kept of each TIV set and of each frame group, of models whose tokens are nested."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tivtok.model.config import TivTokConfig
from tivtok.tokens import Counts, Tokens
from tivtok.video.frames import to_float

if TYPE_CHECKING:
    from tivtok.tokenizer import TivTok

# Numbers of TIV tokens that are tried for a set: so many, evenly spaced. Of TV tokens every number can be chosen.
TIV_NUMBERS = 8
# Errors that differ by less are equal: those of one frame group decoded beside others are rounded otherwise.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Budget:
    """What to keep of the tokens that the encoder makes; everything by default.

    Attributes:
        num_tiv: of each TIV set, the first.
        num_tv: of each frame group, the first.
        psnr: in dB; of these, as few as give every frame group so much, or all of them where they give less.
    """

    num_tiv: int | None = None
    num_tv: int | None = None
    psnr: float | None = None

    def check(self, config: TivTokConfig, refine: int = 0) -> None:
        """
        Raises:
            ValueError: the model's tokens are not nested, there are no such numbers of them, or no such ``psnr``, or
                tokens are to be refined that are chosen by ``psnr``.
        """
        for name, wanted, there in (("num_tiv", self.num_tiv, config.num_tiv), ("num_tv", self.num_tv, config.num_tv)):
            if wanted is not None:
                check_number(name, wanted, there, config)
        if self.psnr is None:
            return
        _check_nested("psnr", config)
        if not (math.isfinite(self.psnr) and self.psnr > 0):
            raise ValueError(f"psnr must be a number of dB above 0, got {self.psnr:g}")
        if refine:
            raise ValueError("psnr does not go with refine, which improves tokens for those that are decoded with them")

    def says(self, missed: int, path: Path | None) -> str:
        """A line on the frame groups of the video ``path`` that stay below ``psnr``, nothing where there are none."""
        return f"{path}: {missed} frame groups stay below {self.psnr:g} dB with all of their tokens" if missed else ""


EVERYTHING = Budget()


def check_number(name: str, wanted: int, there: int, config: TivTokConfig) -> None:
    """
    Raises:
        ValueError: the model's tokens are not nested, or there are not ``wanted`` of them.
    """
    _check_nested(name, config)
    if not 1 <= wanted <= there:
        raise ValueError(f"{name} must be between 1 and {there}, got {wanted}")


def _check_nested(name: str, config: TivTokConfig) -> None:
    if not config.nested:
        raise ValueError(f"{name} is for models with nested tokens: model {config.name} needs all of them")


class Fitted(NamedTuple):
    """Tokens that were chosen for a quality, and how many of their frame groups stay below it with all of theirs."""

    tokens: Tokens
    missed: int


@torch.no_grad()
def fit(model: TivTok, tokens: Tokens, video: Tensor, psnr: float) -> Fitted:
    """Keep as few tokens as give every frame group ``psnr`` dB.

    For each number of TIV tokens of a set, from all of them down, each frame group gets the fewest TV tokens that
    serve, by bisection; the numbers with the fewest tokens in all are kept. Where all tokens do not reach ``psnr``, a
    frame group is to be as good as they make it. Every choice is made by decoding; nothing is random.

    Args:
        tokens: of ``video``, made by ``model``, with as many tokens in each set and group.
        video: (B, 3, F, H, W) as ``TivTok.encode`` takes it, on any device; it may be mapped from a file. Of several
            videos each has to be as good.
        psnr: over the pixels of a frame group.

    Raises:
        TokensError: another model made the tokens.
        ValueError: they have been chosen already.
    """
    model.check_ours(tokens)
    if tokens.counts is not None:
        raise ValueError("the tokens have been chosen already: their numbers differ")
    sets = tokens.sets_of(torch.arange(tokens.tv.shape[1]))
    tiv_counts, tv_counts, missed = [], torch.zeros_like(sets), 0
    for one in range(tokens.tiv.shape[1]):
        groups = (sets == one).nonzero().squeeze(1)
        num_tiv, tv_counts[groups], below = _Part(model, tokens, video, one, groups).choose(4 / 10 ** (psnr / 10))
        tiv_counts.append(num_tiv)
        missed += below
    counts = Counts(tuple(tiv_counts), tuple(tv_counts.tolist()))
    return Fitted(replace(tokens, counts=counts).cleared(), missed)


class _Part:
    """The frame groups of a video that share a TIV set."""

    def __init__(self, model: TivTok, tokens: Tokens, video: Tensor, tiv_set: int, groups: Tensor) -> None:
        self.model, self.video, self.tokens, self.groups = model, video, tokens, groups
        self.tiv = tokens.tiv[:, tiv_set : tiv_set + 1]
        self.num_tv = tokens.tv.shape[2]

    def choose(self, limit: float) -> tuple[int, Tensor, int]:
        """The number of TIV tokens, that of each group's TV tokens (n,), and how many groups stay above ``limit``.

        Args:
            limit: of the mean squared error.
        """
        everything = torch.full_like(self.groups, self.num_tv)
        most, least = self.tiv.shape[2], self._errors(self.tiv.shape[2], everything, everything > 0)
        limits = least.clamp_min(limit) * (1 + ROUNDING)
        best = most, self._fewest(most, limits)
        for num_tiv in sorted({-(-most * k // TIV_NUMBERS) for k in range(1, TIV_NUMBERS)} - {0, most}, reverse=True):
            if (self._errors(num_tiv, everything, everything > 0) > limits).any():
                break
            counts = self._fewest(num_tiv, limits)
            if num_tiv + int(counts.sum()) < best[0] + int(best[1].sum()):
                best = num_tiv, counts
        return *best, int((least > limit * (1 + ROUNDING)).sum())

    def _fewest(self, num_tiv: int, limits: Tensor) -> Tensor:
        """(n,): the fewest TV tokens that keep each group within its limit, where all of them do."""
        low, high = torch.ones_like(self.groups), torch.full_like(self.groups, self.num_tv)
        while (searched := low < high).any():
            middle = (low + high) // 2
            serves = self._errors(num_tiv, middle, searched) <= limits
            high = torch.where(searched & serves, middle, high)
            low = torch.where(searched & ~serves, middle + 1, low)
        return high

    def _errors(self, num_tiv: int, counts: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared errors of the groups (n,) that are ``wanted``, the largest of any video; infinite elsewhere.

        Args:
            counts: (n,), of their TV tokens.
        """
        config, errors = self.model.config, torch.full(counts.shape, math.inf, dtype=torch.float64)
        prepared = self.model.prepare(self.tiv[:, :, :num_tiv])
        for count in counts[wanted].unique().tolist():
            alike = (wanted & (counts == count)).nonzero().squeeze(1)
            for run in alike.split(config.groups_per_chunk):
                errors[run] = self._errors_of(prepared, self.groups[run], count)
        return errors

    def _errors_of(self, prepared: list[tuple[Tensor, ...]], groups: Tensor, count: int) -> Tensor:
        """As `_errors`, of groups with one number of TV tokens; frames beyond the video's end count for nothing."""
        tokens, per_group = self.tokens, self.model.config.frames_per_group
        tv = tokens.tv[:, groups.to(tokens.tv.device)][:, :, :count]
        made = self.model.decode_groups(prepared, tv, [len(groups)], tokens.height, tokens.width).clamp(-1, 1)
        frames = groups[:, None] * per_group + torch.arange(per_group)
        there = frames < tokens.num_frames
        shown = frames.clamp_max(tokens.num_frames - 1).flatten()
        truth = self.video[:, :, shown.to(self.video.device)].to(made.device)
        each = (made.float() - to_float(truth, torch.float32)).square().double().mean((1, 3, 4)).cpu()
        return ((each.unflatten(1, there.shape) * there).sum(2) / there.sum(1)).amax(0)
