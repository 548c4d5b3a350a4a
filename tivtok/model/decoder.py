"""Invariant Broadcasting (paper Sec. 3.3, Eq. 5): a frame group is decoded from the TIV tokens and its own TV tokens.

Both modes have the same weights and the same two calls: `prepare` what depends on the TIV tokens alone, once, then
decode any frame `groups` with it. No frame group sees another, so any subset can be decoded, in any order.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tivtok.attention import SifLayout, broadcast_attention, sif_attention
from tivtok.model.blocks import Blocks, Places, learned_tokens
from tivtok.model.config import TivTokConfig
from tivtok.model.rope import Rotary, rotary_table

# What depends on the TIV tokens alone: per layer, tensors of (TIV sets of the batch, N_TIV, ...).
Prepared = list[tuple[Tensor, ...]]


class Decoder(nn.Module):
    """Base of the two modes: latent and pixel projections, patch queries, blocks."""

    def __init__(self, config: TivTokConfig) -> None:
        super().__init__()
        self.config = config
        self.from_latent = nn.Linear(config.latent_dim, config.width)
        self.tiv_embedding = learned_tokens(config.num_tiv, config.width)
        self.tv_embedding = learned_tokens(config.num_tv, config.width)
        self.patch_query = learned_tokens(1, config.width)
        self.places = Places(config) if config.patch_positions == "learned" else None
        self.blocks = Blocks(config, config.decoder_layers)
        self.norm = nn.LayerNorm(config.width)
        self.to_pixels = nn.Linear(config.width, config.patch_values)

    def prepare(self, tiv: Tensor) -> Prepared:
        """tiv (C, N_TIV, D): the C = B * S TIV sets of the batch; of a model with nested tokens perhaps their first."""
        raise NotImplementedError

    def groups(self, prepared: Prepared, tv: Tensor, frames_of_set: list[int], rows: int, columns: int) -> Tensor:
        """Decode frame groups, in the order of their TIV sets.

        Args:
            prepared: of the B * S TIV sets.
            tv: (B, T, N_TV, D), or their first as in `prepare`.
            frames_of_set: how many of the T groups use each of the S sets.
            rows, columns: of the patch grid.

        Returns:
            patches (B, T, rows * columns, values per patch).
        """
        raise NotImplementedError

    def _frame_rows(self, tv: Tensor, rows: int, columns: int) -> Tensor:
        """(B, T, N_TV, D) -> (B, T, N_TV + patches, width): TV tokens, then patch queries."""
        tv = self.from_latent(tv) + self.tv_embedding[: tv.shape[2]]
        queries = self.patch_query if self.places is None else self.patch_query + self.places(rows, columns)
        return torch.cat([tv, queries.expand(*tv.shape[:2], rows * columns, -1)], dim=2)

    def _rotary(self, grid: tuple[int, int, int], like: Tensor, num_tv: int, tokens_before: int = 0) -> Rotary:
        # Every group sits at time 0: a decoder that never compares frames has no use for their order.
        config = self.config
        return rotary_table(
            config.head_dim,
            num_tv,
            grid,
            config.rope_theta,
            tokens_before,
            config.latent_grid,
            like.device,
            placed=config.latent_positions == "grid",
            nested_of=config.nested_of,
        )

    def _pixels(self, x: Tensor) -> Tensor:
        return self.to_pixels(self.norm(x))


class SharedDecoder(Decoder):
    """TIV rows attend to TIV rows: their keys and values are computed once and broadcast to all frames."""

    def prepare(self, tiv: Tensor) -> Prepared:
        x = self.from_latent(tiv) + self.tiv_embedding[: tiv.shape[1]]
        layout = SifLayout.uniform(x.shape[0], x.shape[1], 0, 0)
        rotary = self._rotary((0, 1, 1), tiv, 0, x.shape[1]) if self.config.latent_grid else None
        prepared: Prepared = []
        for block in self.blocks:
            x, keys_and_values = block(x, partial(sif_attention, layout=layout, tiv_scope="tiv"), rotary)
            prepared.append(keys_and_values)
        return prepared

    def groups(self, prepared: Prepared, tv: Tensor, frames_of_set: list[int], rows: int, columns: int) -> Tensor:
        x = self._frame_rows(tv, rows, columns)  # (B, T, L, width)
        rotary = self._rotary((1, rows, columns), tv, tv.shape[2])
        layout = SifLayout.from_lengths(
            num_tiv=[prepared[0][0].shape[1]] * (len(frames_of_set) * tv.shape[0]),
            frame_tokens=[[x.shape[2]] * frames for frames in frames_of_set] * tv.shape[0],
        )
        for block, tiv in zip(self.blocks, prepared, strict=True):
            x, _ = block(x, partial(_broadcast, tiv=tiv, layout=layout), rotary)
        return self._pixels(x[:, :, tv.shape[2] :])


def _broadcast(q: Tensor, k: Tensor, v: Tensor, tiv: tuple[Tensor, ...], layout: SifLayout) -> Tensor:
    """Frame rows (B, T, L, heads, head_dim) see themselves and the keys and values ``tiv`` (B * S, N_TIV, ...)."""
    packed = [t.flatten(0, 2) for t in (q, k, v)] + [t.flatten(0, 1) for t in tiv]
    return broadcast_attention(*packed, layout=layout).unflatten(0, q.shape[:3])


class PerFrameDecoder(Decoder):
    """TIV rows are copied into each frame's sequence and updated there: the literal D([Z_TIV, Z_TV(t)])."""

    def prepare(self, tiv: Tensor) -> Prepared:
        return [(self.from_latent(tiv) + self.tiv_embedding[: tiv.shape[1]],)]

    def groups(self, prepared: Prepared, tv: Tensor, frames_of_set: list[int], rows: int, columns: int) -> Tensor:
        (tiv,) = prepared[0]  # (B * S, N_TIV, width)
        batch, frames = tv.shape[:2]
        counts = torch.tensor(frames_of_set, device=tv.device)
        tiv = tiv.unflatten(0, (batch, -1)).repeat_interleave(counts, dim=1, output_size=frames)
        x = torch.cat([tiv, self._frame_rows(tv, rows, columns)], dim=2).flatten(0, 1)  # (B * T, N_TIV + L, width)
        num_tiv, num_tv = tiv.shape[2], tv.shape[2]
        layout = SifLayout.uniform(batch * frames, num_tiv, 1, x.shape[1] - num_tiv)
        rotary = self._rotary((1, rows, columns), tv, num_tv, num_tiv)
        for block in self.blocks:
            x, _ = block(x, partial(sif_attention, layout=layout), rotary)
        return self._pixels(x[:, num_tiv + num_tv :]).unflatten(0, (batch, frames))


DECODERS = {"shared": SharedDecoder, "per_frame": PerFrameDecoder}
