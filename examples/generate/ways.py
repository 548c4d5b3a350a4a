"""Ways from noise to the tokens of a video: a TIV set and then TV tokens ("split"), or all at once ("undivided")."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from examples.generate.flow import Flow, Rows, Sampling, draw, flow_loss
from tivtok import TivTokConfig, Tokens
from tivtok.chunks.sharing import mean_tiv
from tivtok.tokens.statistics import LatentStats
from tivtok.tokens.tokens import NORMALIZED


class Videos(NamedTuple):
    """Normalised tokens of n videos of equally many chunks.

    Attributes:
        tiv: (n, chunks, N_TIV, D), a set for each chunk.
        tv: (n, frame groups, N_TV, D).
        labels: (n,), their classes.
    """

    tiv: Tensor
    tv: Tensor
    labels: Tensor


class Way(NamedTuple):
    """What a flow learns from, and how it draws.

    Attributes:
        loss: of some videos; the last argument is the share of the labels that are left out.
        draw: of classes (B,) and a number of frame groups: TIV sets (B, S, N_TIV, D), TV tokens (B, groups, N_TV, D).
    """

    loss: Callable[[Flow, TivTokConfig, Videos, torch.Generator, float], Tensor]
    draw: Callable[[Flow, TivTokConfig, Tensor, int, Sampling, torch.Generator], tuple[Tensor, Tensor]]


def split_loss(
    flow: Flow,
    config: TivTokConfig,
    videos: Videos,
    generator: torch.Generator,
    dropout: float,
    neighbours: int = 0,
) -> Tensor:
    tiv, tv, labels = videos
    one = mean_tiv(tiv.unbind(1))
    of_tiv = flow_loss(flow, one, labels, Rows.of_tiv(config), generator, dropout)
    both = torch.cat([one, tv.flatten(1, 2)], dim=1)
    rows = Rows.of_tv(config, tv.shape[1], neighbours)
    return (of_tiv + flow_loss(flow, both, labels, rows, generator, dropout)) / 2


def draw_split(
    flow: Flow,
    config: TivTokConfig,
    labels: Tensor,
    groups: int,
    how: Sampling,
    generator: torch.Generator,
    neighbours: int = 0,
) -> tuple[Tensor, Tensor]:
    nothing = torch.empty(len(labels), 0, config.latent_dim, device=labels.device)
    tiv = draw(flow, labels, Rows.of_tiv(config), nothing, how, generator)
    both = draw(flow, labels, Rows.of_tv(config, groups, neighbours), tiv, how, generator)
    return tiv[:, None], both[:, config.num_tiv :].unflatten(1, (groups, config.num_tv))


def undivided_loss(
    flow: Flow, config: TivTokConfig, videos: Videos, generator: torch.Generator, dropout: float
) -> Tensor:
    tiv, tv, labels = videos
    rows = Rows.undivided(config, tv.shape[1])
    tokens = tiv.new_empty(len(tiv), len(rows.slot), config.latent_dim)
    is_tiv = rows.slot < config.num_tiv
    tokens[:, is_tiv], tokens[:, ~is_tiv] = tiv.flatten(1, 2), tv.flatten(1, 2)
    return flow_loss(flow, tokens, labels, rows, generator, dropout)


def draw_undivided(
    flow: Flow, config: TivTokConfig, labels: Tensor, groups: int, how: Sampling, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    rows = Rows.undivided(config, groups)
    nothing = torch.empty(len(labels), 0, config.latent_dim, device=labels.device)
    drawn = draw(flow, labels, rows, nothing, how, generator)
    tiv, tv = (drawn[:, some] for some in (rows.slot < config.num_tiv, rows.slot >= config.num_tiv))
    return tiv.unflatten(1, (-1, config.num_tiv)), tv.unflatten(1, (groups, config.num_tv))


# "split": p(TIV | class), one set for the whole video, then p(TV | TIV, class); with "neighbours" a frame group sees
# those before and after it. "undivided": p(tokens | class), a set for each chunk, in one sequence in which all see all.
WAYS = {
    "split": Way(split_loss, draw_split),
    "split, neighbours": Way(partial(split_loss, neighbours=1), partial(draw_split, neighbours=1)),
    "undivided": Way(undivided_loss, draw_undivided),
}


def drawn_tokens(config: TivTokConfig, stats: LatentStats, tiv: Tensor, tv: Tensor, fps: float) -> Tokens:
    """What a way has drawn as tokens that the model decodes; each TIV set is of equally many frame groups."""
    groups = tv.shape[1]
    return Tokens(
        tiv=tiv,
        tv=tv,
        tiv_index=torch.arange(groups) * tiv.shape[1] // groups,
        num_frames=groups * config.frames_per_group,
        height=config.native_size[0],
        width=config.native_size[1],
        fps=fps,
        preset=config.name,
        model_id=stats.model_id + NORMALIZED,
    ).denormalize(stats)
