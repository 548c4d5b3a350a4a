"""A baseline: as many cosine coefficients as there are tokens' numbers, divided between what stays and what changes.

The lowest coefficients of a chunk's mean frame group stand for TIV tokens, those of each group's difference from it for
its TV tokens. Which are kept follows from a rule, not from the clips. Nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.cards.baseline import transform
from tivtok.chunks.sharing import mean_tiv, share_tiv_sets
from tivtok.model.config import TivTokConfig

# Energy expected of brightness and two hues, and where it begins to fall with frequency, in half periods per pixel.
_OF_COLOURS, _KNEE = (1.0, 0.15, 0.075), 1 / 16


@dataclass(frozen=True)
class DividedDct:
    """The code for as many numbers as the tokens of ``config`` have, at its native size.

    Attributes:
        follows: TV numbers are differences from the set that chunks share, not from their own chunk's mean group.
    """

    config: TivTokConfig
    follows: bool = True

    def __call__(self, videos: Tensor, sets: int) -> Tensor:
        """Videos (B, 3, F, H, W) of whole chunks, as ``sets`` shared sets and each frame group's numbers show them."""
        config = self.config
        groups = videos.unflatten(2, (-1, config.frames_per_group)).transpose(1, 2)  # (B, T, 3, f, H, W)
        found = transform(groups)
        chunks = found.split(config.groups_per_chunk, dim=1)
        own = [chunk.mean(dim=1, keepdim=True) for chunk in chunks]
        set_of_chunk = share_tiv_sets(len(chunks), sets).tolist()
        shown = []
        for chunk, its_own, its_set in zip(chunks, own, set_of_chunk, strict=True):
            shared = mean_tiv(x for x, other in zip(own, set_of_chunk, strict=True) if other == its_set)
            still = shared * self._kept[0]
            change = (chunk - (still if self.follows else its_own)) * self._kept[1]
            shown.append(still + change)
        return transform(torch.cat(shown, dim=1), back=True).transpose(1, 2).flatten(2, 3).to(videos)

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        """(3, f, H, W) each: 1 at the coefficients that TIV, and TV numbers are."""
        config = self.config
        (rows, columns), depth = config.native_size, config.frames_per_group
        down, across = torch.arange(rows)[:, None] / rows, torch.arange(columns) / columns
        in_space = 1 / (_KNEE**2 + down**2 + across**2)
        colours = torch.tensor(_OF_COLOURS)[:, None, None, None]
        in_time = 1 / (1 + 1.44 * torch.arange(depth)[:, None, None] ** 2)
        still = colours * in_space * (torch.arange(depth) == 0)[:, None, None]
        return _largest(still, config.num_tiv * config.latent_dim), _largest(
            colours * in_time * in_space, config.num_tv * config.latent_dim
        )


def _largest(expected: Tensor, count: int) -> Tensor:
    kept = torch.zeros(expected.numel(), dtype=torch.float64)
    kept[expected.flatten().argsort(descending=True, stable=True)[:count]] = 1
    return kept.view(expected.shape)
