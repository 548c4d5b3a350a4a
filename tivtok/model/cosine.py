"""Cosine transform of frame groups: the linear code that the transformers add to, where ``transform`` is "cosine"."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from tivtok.model.config import TivTokConfig
from tivtok.model.patchify import patchify

# Rows are orthonormal: brightness, then two differences of colours.
_COLOURS = (
    (math.sqrt(1 / 3), math.sqrt(1 / 3), math.sqrt(1 / 3)),
    (math.sqrt(1 / 2), 0.0, -math.sqrt(1 / 2)),
    (math.sqrt(1 / 6), -math.sqrt(2 / 3), math.sqrt(1 / 6)),
)
_COLOUR_ENERGY = (1.0, 0.15, 0.075)
_KNEE = 1 / 16  # below this frequency, in half periods per pixel, energy is about even
# Root mean squares of the lowest coefficient of a mean group and of a group's difference from it, per pixel, on the
# training clips of `tiny`.
_STILL, _CHANGE = 0.35, 0.028


class CosineCode(nn.Module):
    """Lowest cosine coefficients of a chunk's mean frame group (TIV) and of each group's difference from it (TV).

    Their number is that of the tokens' channels; the first tokens hold the lowest. Coefficients are those of an
    orthonormal transform at ``config.native_size``; at other sizes they are scaled to stand for the same brightness.
    """

    def __init__(self, config: TivTokConfig) -> None:
        super().__init__()
        self.config = config
        depth, (rows, columns) = config.frames_per_group, config.native_size
        whole = (3, depth, rows, columns)
        pixels = math.sqrt(depth * rows * columns)
        colour = np.array(_COLOUR_ENERGY)[:, None, None, None]
        in_time = (1 / (1 + 1.44 * np.arange(depth) ** 2))[:, None, None]
        in_space = _falling(rows, columns)
        still = np.where(np.arange(depth)[:, None, None] == 0, colour * in_space, 0)
        change = colour * in_time * in_space
        # Amplitudes of mean groups fall as fast as the energy of changes does.
        spreads = (_STILL * pixels * np.sqrt(colour) * in_space, _CHANGE * pixels * np.sqrt(change))
        chosen = [
            np.argsort(-energy, axis=None, kind="stable")[: count * config.latent_dim]
            for energy, count in ((still, config.num_tiv), (change, config.num_tv))
        ]
        used = [1 + max(int(np.unravel_index(places, whole)[axis].max()) for places in chosen) for axis in (2, 3)]
        self.block = (3, depth, *used)  # of coefficients that are computed
        for name, places, spread in zip(("tiv", "tv"), chosen, spreads, strict=True):
            spread = np.broadcast_to(spread, whole).ravel()[places]
            places = np.ravel_multi_index(np.unravel_index(places, whole), self.block)
            self.register_buffer(f"{name}_places", torch.from_numpy(places), persistent=False)
            spread = torch.from_numpy(spread).float().view(-1, config.latent_dim)
            self.register_buffer(f"{name}_spread", spread, persistent=False)
        both = {int(place): number for number, place in enumerate(self.tiv_places)}
        self.register_buffer(
            "in_tiv", torch.tensor([both.get(int(p), -1) for p in self.tv_places]), persistent=False
        )

    tiv_places: Tensor
    tv_places: Tensor
    tiv_spread: Tensor
    tv_spread: Tensor
    in_tiv: Tensor

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """video (B, 3, F, H, W), a chunk in whole patches -> TIV (B, N_TIV, D) and TV (B, groups, N_TV, D), float32."""
        depth = self.config.frames_per_group
        groups = _computed(video).unflatten(2, (-1, depth)).transpose(1, 2)  # (B, T, 3, f, H, W)
        with torch.autocast(video.device.type, enabled=False):
            found = self._transform(groups)
        mean = found.mean(dim=1, keepdim=True)
        tiv = mean[:, 0, self.tiv_places].unflatten(-1, (-1, self.config.latent_dim))
        tv = (found - mean)[..., self.tv_places].unflatten(-1, (-1, self.config.latent_dim))
        return tiv, tv

    def decode(self, tiv: Tensor, tv: Tensor, height: int, width: int) -> Tensor:
        """Frame groups (B, T, 3, f, H, W) in float32 of the TIV tokens (B, T, N_TIV, D) and TV tokens of each."""
        tiv, tv = (_computed(x.flatten(2)) for x in (tiv, tv))
        found = tv.new_zeros(*tv.shape[:2], math.prod(self.block))
        found = found.index_add(2, self.tiv_places[: tiv.shape[2]], tiv).index_add(2, self.tv_places[: tv.shape[2]], tv)
        with torch.autocast(tv.device.type, enabled=False):
            return self._inverse(found.unflatten(2, self.block), height, width)

    def decode_patches(self, tiv: Tensor, tv: Tensor, rows: int, columns: int) -> Tensor:
        """As `decode`, (B, T, rows * columns, values per patch)."""
        _, high, wide = self.config.patch
        groups = self.decode(tiv, tv, rows * high, columns * wide)
        return patchify(groups.transpose(1, 2).flatten(2, 3), self.config.patch)

    def follow(self, tv: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """TV tokens that say beside the TIV tokens ``shared`` what ``tv`` say beside ``own``, as far as they can.

        Args:
            tv: (B, T, N_TV, D).
            own, shared: (B, T or 1, N_TIV, D).
        """
        lost = (own - shared).flatten(2)[..., self.in_tiv.clamp(min=0)] * (self.in_tiv >= 0)
        return tv + lost.unflatten(2, (-1, self.config.latent_dim))[:, :, : tv.shape[2]]

    def _transform(self, groups: Tensor) -> Tensor:
        """(..., 3, f, H, W) -> (..., coefficients of ``block``)."""
        colours, in_time, down, across = self._bases(*groups.shape[-2:], groups)
        found = torch.einsum("...cfhw,dw,bh->...cfbd", groups, across, down)
        return torch.einsum("...cfbd,ic,af->...iabd", found, colours, in_time).flatten(-4)

    def _inverse(self, found: Tensor, height: int, width: int) -> Tensor:
        colours, in_time, down, across = self._bases(height, width, found)
        area = math.prod(self.config.native_size) / (height * width)
        groups = torch.einsum("...iabd,ic,af->...cfbd", found, colours, in_time)
        return torch.einsum("...cfbd,dw,bh->...cfhw", groups, across, down) / area

    def _bases(self, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, depth, rows, columns = self.block
        scale = math.sqrt(math.prod(self.config.native_size) / (height * width))
        bases = (
            torch.tensor(_COLOURS, dtype=torch.float64),
            cosine_basis(depth, depth),
            cosine_basis(rows, height) * scale,
            cosine_basis(columns, width),
        )
        return tuple(x.to(like) for x in bases)


@lru_cache(maxsize=64)
def cosine_basis(count: int, size: int) -> Tensor:
    """(count, size): the first rows of the orthonormal cosine transform (DCT-II); rows beyond ``size`` are zero."""
    frequency, place = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * frequency * (place + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    basis[size:] = 0
    return basis


def _falling(rows: int, columns: int) -> np.ndarray:
    """(rows, columns): expected energy of the coefficients of a change, relative to the lowest."""
    squares = (np.arange(rows)[:, None] / rows) ** 2 + (np.arange(columns) / columns) ** 2
    return _KNEE**2 / (_KNEE**2 + squares)


def _computed(x: Tensor) -> Tensor:
    """``x`` in a dtype that sums of thousands of numbers are made in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
