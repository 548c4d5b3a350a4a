"""3D rotary positions for patch tokens: any number of frame groups, rows and columns."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

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
    device: torch.device | None = None,
) -> Rotary:
    """cos and sin, each float32 (rows, head_dim / 2), for rows ``[before | (latents, patches) of group 1 | ...]``.

    Args:
        num_latents: latent tokens at the head of each group; like those before the first group, they are not rotated.
        grid: frame groups, patch rows and patch columns; positions are the integer grid coordinates.
        tokens_before: rows ahead of the first group.
    """
    with torch.inference_mode(False):  # a cached table outlives the mode it was made in
        return _table(head_dim, num_latents, grid, theta, tokens_before, device)


@lru_cache(maxsize=64)
def _table(
    head_dim: int,
    num_latents: int,
    grid: tuple[int, int, int],
    theta: float,
    tokens_before: int,
    device: torch.device | None,
) -> Rotary:
    groups, rows, columns = grid
    coordinates = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)).view(-1, 3)
    angles = torch.cat(
        [
            coordinates[:, axis, None] * theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
            for axis, pairs in enumerate(split_pairs(head_dim))
        ],
        dim=1,
    )
    angles = torch.nn.functional.pad(angles.view(groups, rows * columns, -1), (0, 0, num_latents, 0)).flatten(0, 1)
    angles = torch.nn.functional.pad(angles, (0, 0, tokens_before, 0))
    return angles.cos().float().to(device), angles.sin().float().to(device)
