"""3D rotary positions for patch tokens: any number of frame groups, rows and columns."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tivtok_kernels.caching import constant_when_compiled, traceable_cache

Rotary = tuple[Tensor, Tensor]


def split_pairs(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs for t, y and x. At head_dim 64: 12, 10, 10, as in VFRTok (arXiv 2505.12053)."""
    pairs = head_dim // 2
    spatial = pairs * 5 // 16
    return pairs - 2 * spatial, spatial, spatial


def rotary_table(
    head_dim: int,
    num_latents: int,
    grid: tuple[int, int, int],
    theta: float,
    tokens_before: int = 0,
    latent_grid: tuple[int, int] | None = None,
    device: torch.device | None = None,
    placed: bool = True,
    timed: bool = True,
    nested_of: tuple[int, int] | None = None,
) -> Rotary:
    """cos and sin, each float32 (rows, head_dim / 2), for rows ``[before | (latents, patches) of group 1 | ...]``.

    Args:
        num_latents: latent tokens at the head of each group.
        grid: frame groups, patch rows and patch columns.
        tokens_before: latent tokens ahead of the first group.
        latent_grid: None: patches are at their integer coordinates and latents are not rotated. Otherwise the rows and
            columns of a frame in units of position: the patches of any ``grid`` fill it, and so do `places` of latents,
            those of a group at its time and those before at time 0.
        placed: with ``latent_grid``, whether the latents of a group have places; otherwise they are not rotated.
        timed: whether groups are at times 0, 1, ...; otherwise all are at time 0.
        nested_of: of nested tokens: of how many the tokens before the first group are the first, and of how many those
            of a group; their places are `nested_places`. None: they are all there are.
    """
    with torch.inference_mode(False):  # a cached table outlives the mode it was made in
        return _table(head_dim, num_latents, grid, theta, tokens_before, latent_grid, device, placed, timed, nested_of)


def places(count: int) -> Tensor:
    """float64 (count, 2): points spread evenly over the unit square, in rows from top to bottom."""
    rows = max(1, round(count**0.5))
    points = []
    for row in range(rows):
        columns = count * (row + 1) // rows - count * row // rows
        points += [((row + 0.5) / rows, (column + 0.5) / columns) for column in range(columns)]
    return torch.tensor(points, dtype=torch.float64).view(-1, 2)


def nested_places(count: int) -> Tensor:
    """`places` in an order in which the first few, any number of them, are spread over the unit square as well.

    Each is the one that leaves the smallest mean squared distance of all places to the nearest of those up to it; of
    several such, the first in reading order.
    """
    return places(count)[list(_nested_order(count))]


@constant_when_compiled
def _nested_order(count: int) -> tuple[int, ...]:
    return _sought_order(count)


@lru_cache(maxsize=64)
def _sought_order(count: int) -> tuple[int, ...]:
    rows = max(1, round(count**0.5))
    columns = count // rows  # of some rows, of the others one more
    whole = (places(count) * (2 * rows * columns * (columns + 1))).round().long()  # so that no rounding decides
    distances = (whole[:, None] - whole).square().sum(2)
    nearest, left, order = torch.full((count,), 2**62), distances.sum(1), []
    for _ in range(count):
        order.append(int(left.argmin()))
        to_it = distances[order[-1]]
        closer = (to_it < nearest).nonzero().squeeze(1)
        before, after = (torch.minimum(distances[closer], x[closer, None]) for x in (nearest, to_it))
        left += (after - before).sum(0)
        nearest[closer] = to_it[closer]
    return tuple(order)


@traceable_cache(maxsize=64)
def _table(
    head_dim: int,
    num_latents: int,
    grid: tuple[int, int, int],
    theta: float,
    tokens_before: int,
    latent_grid: tuple[int, int] | None,
    device: torch.device | None,
    placed: bool,
    timed: bool,
    nested_of: tuple[int, int] | None,
) -> Rotary:
    groups, *size = grid
    before, within = places(tokens_before), places(num_latents)
    if nested_of is not None:
        before, within = nested_places(nested_of[0])[:tokens_before], nested_places(nested_of[1])[:num_latents]
    centres = torch.cartesian_prod(*((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in size)).view(-1, 2)
    in_frame = torch.cat([within, centres])
    times = torch.arange(groups, dtype=torch.float64) if timed else torch.zeros(groups, dtype=torch.float64)
    in_time = times.repeat_interleave(len(in_frame))
    points = torch.cat([before, in_frame.repeat(groups, 1)]) * torch.tensor(latent_grid or size) - 0.5
    coordinates = torch.cat([torch.nn.functional.pad(in_time, (tokens_before, 0))[:, None], points], dim=1)
    angles = torch.cat(
        [
            coordinates[:, axis, None] * theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
            for axis, pairs in enumerate(split_pairs(head_dim))
        ],
        dim=1,
    )
    if latent_grid is None:
        angles[:tokens_before] = 0
    if latent_grid is None or not placed:
        angles[tokens_before:].unflatten(0, (groups, len(in_frame)))[:, :num_latents] = 0
    return angles.cos().float().to(device), angles.sin().float().to(device)
