"""A transformer that turns noise into tokens: flow matching (arXiv 2210.02747) with scope-induced attention.

It draws TIV tokens of a class, then TV tokens of that class and these TIV tokens: p(TIV | class) p(TV | TIV, class).
The tokens that are known stand in the same sequence as those to draw. TV tokens see their frame group, its neighbours
if wanted, and the TIV tokens, which see all: the cost grows with the number of frame groups, not with its square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tivtok.attention import RangeLayout, SifLayout, range_attention, sif_attention
from tivtok.model.config import TivTokConfig


@dataclass(frozen=True)
class Rows:
    """What the rows of a sequence are, and who sees whom.

    Attributes:
        slot: (N,) which token of a TIV set, or after these of a frame group, a row is.
        group: (N,) its frame group, of a chunk's TIV set the first; 0 for a set that all groups share.
        known: how many rows, the first, are given and not to be drawn.
        seeing_all: how many rows, the first, see all and are seen by all.
        frames: (number of frame groups, rows in each) of the rest, who see their own beside those.
        neighbours: how many frame groups before and after their own they see as well.
    """

    slot: Tensor
    group: Tensor
    known: int
    seeing_all: int
    frames: tuple[int, int]
    neighbours: int = 0

    @classmethod
    def of_tiv(cls, config: TivTokConfig) -> Rows:
        """A TIV set, to be drawn."""
        return cls(torch.arange(config.num_tiv), torch.zeros(config.num_tiv).long(), 0, config.num_tiv, (0, 0))

    @classmethod
    def of_tv(cls, config: TivTokConfig, groups: int, neighbours: int = 0) -> Rows:
        """A TIV set that is known, and the TV tokens of all groups, to be drawn."""
        tiv, tv = torch.arange(config.num_tiv), config.num_tiv + torch.arange(config.num_tv)
        group = torch.arange(groups).repeat_interleave(config.num_tv)
        slot, group = torch.cat([tiv, tv.repeat(groups)]), torch.cat([torch.zeros_like(tiv), group])
        return cls(slot, group, len(tiv), len(tiv), (groups, len(tv)), neighbours)

    @classmethod
    def undivided(cls, config: TivTokConfig, groups: int) -> Rows:
        """All tokens of all chunks, each chunk with a TIV set of its own, to be drawn at once; all see all."""
        slots, of_group = [], []
        for first in range(0, groups, config.groups_per_chunk):
            here = torch.arange(first, min(first + config.groups_per_chunk, groups))
            tv = config.num_tiv + torch.arange(config.num_tv)
            slots += [torch.arange(config.num_tiv), tv.repeat(len(here))]
            of_group += [torch.full((config.num_tiv,), first), here.repeat_interleave(config.num_tv)]
        slot = torch.cat(slots)
        return cls(slot, torch.cat(of_group), 0, len(slot), (0, 0))

    def layout(self, batch: int) -> SifLayout | RangeLayout:
        own = SifLayout.uniform(batch, self.seeing_all, *self.frames)
        return own.frame_windows(self.neighbours, self.neighbours) if self.neighbours else own


@dataclass(frozen=True)
class Sampling:
    """How noise becomes tokens.

    Attributes:
        steps: of Euler's method.
        guidance: what the velocity's difference from that without a class is multiplied by (arXiv 2207.12598); 1: no
            guidance, and half the work.
        guidance_from: the level, from 0, noise, to 1, tokens, that guidance begins at (arXiv 2404.07724).
        shift: above 1 more of the steps are near noise, as in arXiv 2403.03206; 1: all are as long.
    """

    steps: int = 50
    guidance: float = 1.0
    guidance_from: float = 0.0
    shift: float = 1.0

    def levels(self) -> Tensor:
        """(steps + 1,), from 0 to 1."""
        noise = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return (1 - self.shift * noise / (1 + (self.shift - 1) * noise)).float()


class Flow(nn.Module):
    """Predicts the velocity from noise to tokens, as DiT does (arXiv 2212.09748): class and noise level scale the rows.

    Args:
        tokenizer: the sizes of the tokens.
        classes: how many there are; where one is -1 in `forward`, there is none.
        width, layers, heads: of the transformer.
    """

    def __init__(self, tokenizer: TivTokConfig, classes: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.unlabelled = nn.Parameter(torch.zeros(width))
        self.width = width
        self.embed = nn.Linear(tokenizer.latent_dim, width)
        self.slot = nn.Embedding(tokenizer.num_tiv + tokenizer.num_tv, width)
        self.label = nn.Embedding(classes, width)
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        blocks = [Block(width, heads) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.modulate = nn.Linear(width, 2 * width)
        self.to_velocity = nn.Linear(width, tokenizer.latent_dim)
        for module in (self.modulate, self.to_velocity, *(block.modulate for block in blocks)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, level: Tensor, labels: Tensor, rows: Rows) -> Tensor:
        """Velocity (B, N, D) of the rows x (B, N, D); that of known rows means nothing.

        Args:
            level: (B,) from 0, noise, to 1, tokens. Known rows have 1.
            labels: (B,) classes, -1 for none.
        """
        batch, layout = len(x), rows.layout(len(x))
        is_drawn = (torch.arange(len(rows.slot), device=x.device) >= rows.known).long()
        levels = torch.stack([torch.ones_like(level), level], dim=1)  # of known and of drawn rows
        of_class = torch.where(labels[:, None] < 0, self.unlabelled, self.label(labels.clamp_min(0)))
        condition = F.silu(self.level(waves(1000 * levels, self.width)) + of_class[:, None])
        x = self.embed(x) + self.slot(rows.slot.to(x.device)) + waves(rows.group.to(x), self.width)
        for block in self.blocks:
            x = block(x, block.modulate(condition)[:, is_drawn], layout)
        scale, shift = self.modulate(condition)[:, is_drawn].chunk(2, dim=-1)
        return self.to_velocity(normed(x) * (1 + scale) + shift).view(batch, len(rows.slot), -1)


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, modulation: Tensor, layout: SifLayout | RangeLayout) -> Tensor:
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = modulation.chunk(6, dim=-1)
        qkv = self.to_qkv(normed(x) * (1 + scale) + shift).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(2)  # (B, N, heads, head_dim)
        x = x + gate * self.to_out(attend(normed(q), normed(k), v, layout).flatten(-2))
        return x + mlp_gate * self.mlp(normed(x) * (1 + mlp_scale) + mlp_shift)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: SifLayout | RangeLayout) -> Tensor:
    """Attention of (B, N, heads, head_dim)."""
    if isinstance(layout, SifLayout):
        return sif_attention(q, k, v, layout)
    return range_attention(*(x.flatten(0, 1) for x in (q, k, v)), layout).view_as(q)


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def waves(x: Tensor, width: int) -> Tensor:
    """Sines and cosines of ``x`` (...), periods from 6 to 60,000: (..., width)."""
    angles = x[..., None] * torch.exp(-math.log(10_000) * torch.arange(width // 2, device=x.device) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def flow_loss(
    flow: Flow, tokens: Tensor, labels: Tensor, rows: Rows, generator: torch.Generator, dropout: float = 0.0
) -> Tensor:
    """Squared error of the velocity, on the straight way from noise to ``tokens`` (B, N, D).

    Args:
        dropout: the share of the labels that are left out, so that the model can do without.
    """
    noise = torch.randn(tokens.shape, generator=generator, device="cpu").to(tokens)
    level = torch.rand(len(tokens), generator=generator, device="cpu").to(tokens)
    if dropout:
        left_out = torch.rand(len(tokens), generator=generator, device="cpu") < dropout
        labels = labels.masked_fill(left_out.to(labels.device), -1)
    mixed = torch.lerp(noise, tokens, level[:, None, None])
    mixed = torch.cat([tokens[:, : rows.known], mixed[:, rows.known :]], dim=1)
    error = flow(mixed, level, labels, rows) - (tokens - noise)
    return error[:, rows.known :].square().mean()


# The mean of `flow_loss` for who takes every number for a standard normal one of its own: the integral over the level t
# of 1 / (t^2 + (1 - t)^2).
TRIVIAL_LOSS = math.pi / 2


@torch.no_grad()
def draw(flow: Flow, labels: Tensor, rows: Rows, known: Tensor, how: Sampling, generator: torch.Generator) -> Tensor:
    """Tokens (B, N, D) of the classes ``labels`` (B,), in Euler steps; ``known`` (B, n, D) are the first of them."""
    shape = (len(labels), len(rows.slot) - rows.known, known.shape[2])
    x = torch.randn(shape, generator=generator, device="cpu").to(known)
    for level, after in pairwise(how.levels().tolist()):
        both = torch.cat([known, x], dim=1)
        levels = both.new_full((len(labels),), level)
        velocity = flow(both, levels, labels, rows)
        if how.guidance != 1 and level >= how.guidance_from:
            without = flow(both, levels, torch.full_like(labels, -1), rows)
            velocity = without + how.guidance * (velocity - without)
        x = x + velocity[:, rows.known :] * (after - level)
    return torch.cat([known, x], dim=1)
