"""Pieces of clips over clips."""

from __future__ import annotations

import math

import numpy as np
import torch

from tivtok.training.collage import LARGEST, SMALLEST, lay_over

SIZE = (3, 9, 40, 56)


def covers(count: int) -> torch.Tensor:
    """(count, F, H, W): how much of each pixel is the piece's, for so many pieces."""
    nothing, everything = torch.zeros(SIZE), torch.ones(SIZE)
    laid = [lay_over(nothing, everything, np.random.default_rng(seed)) for seed in range(count)]
    assert all(torch.equal(x[0], x[1]) and torch.equal(x[0], x[2]) for x in laid)  # all channels alike
    return torch.stack([x[0] for x in laid])


def test_pieces_are_whole_inside_and_nowhere_else() -> None:
    cover = covers(100)
    assert cover.min() == 0 and cover.max() == 1
    edges = ((cover > 0) & (cover < 1)).sum((2, 3))  # about a pixel wide: they grow with the radius, not with the area
    assert edges.max() < 4 * math.pi * LARGEST * min(SIZE[2:])


def test_small_pieces_are_the_most_frequent() -> None:
    """Every doubling of the radius makes them 4 times as rare, up to the largest."""
    area = covers(400).sum((2, 3)).amax(1)
    largest = 4 * (LARGEST * min(SIZE[2:]) + 1) ** 2  # a square box, with its edge
    assert area.max() < largest
    small = 4 * (2 * SMALLEST * min(SIZE[2:])) ** 2
    assert 0.6 < (area < small).float().mean() < 0.95


def test_half_of_them_move() -> None:
    cover = covers(200)
    seen = cover.amax((1, 2, 3)) > 0
    moving = (cover != cover[:, :1]).flatten(1).any(1)[seen].float().mean()
    assert 0.35 < moving < 0.65


def test_the_same_seed_makes_the_same_collage() -> None:
    clip, piece = torch.rand(SIZE), torch.rand(SIZE)
    first, second = (lay_over(clip, piece, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, clip)
