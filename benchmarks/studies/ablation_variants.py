"""The small model of the studies, and the halves that the paper's ablations put in place of its own: no SIF, no IB.

These have the weights of the halves they replace; only who sees whom changes.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from tivtok.attention import SifLayout, sif_attention
from tivtok.model.config import TivTokConfig
from tivtok.model.decoder import Decoder, Prepared
from tivtok.model.encoder import Encoder
from tivtok.tokenizer import TivTok

Half = TypeVar("Half", bound=nn.Module)

# 3:1 TIV to TV tokens in a chunk of four frame groups, as in T128.
FULL = TivTokConfig(
    name="ablation",
    num_tiv=24,
    num_tv=2,
    latent_dim=32,
    width=96,
    heads=3,
    encoder_layers=2,
    decoder_layers=2,
    native_size=(32, 32),
    qk_norm=True,
    rope_theta=20.0,
    latent_positions="grid",
)


class DenseEncoder(Encoder):
    """No SIF: every token sees the whole chunk."""

    def _layout(self, batch: int, groups: int, frame_tokens: int) -> SifLayout:
        return _dense(batch, self.config.num_tiv + groups * frame_tokens)


class JointDecoder(Decoder):
    """No broadcasting: the TIV tokens and all frame groups of a chunk in one sequence, in which all see all.

    A chunk is ``groups_per_chunk`` groups of one call and one TIV set, counted from the first: decode whole videos.
    """

    def prepare(self, tiv: Tensor) -> Prepared:
        return [(self.from_latent(tiv) + self.tiv_embedding,)]

    def groups(self, prepared: Prepared, tv: Tensor, frames_of_set: list[int], rows: int, columns: int) -> Tensor:
        (tiv,) = prepared[0]  # (B * S, N_TIV, width)
        frames = self._frame_rows(tv, rows, columns)  # (B, T, N_TV + patches, width)
        decoded = []
        for tiv_set, of_set in zip(
            tiv.unflatten(0, (tv.shape[0], -1)).unbind(1), frames.split(frames_of_set, 1), strict=True
        ):
            for chunk in of_set.split(self.config.groups_per_chunk, dim=1):
                decoded.append(self._chunk(tiv_set, chunk, (chunk.shape[1], rows, columns)))
        return torch.cat(decoded, dim=1)

    def _chunk(self, tiv: Tensor, frames: Tensor, grid: tuple[int, int, int]) -> Tensor:
        x = torch.cat([tiv, frames.flatten(1, 2)], dim=1)
        layout = _dense(x.shape[0], x.shape[1])
        rotary = self._rotary(grid, x, self.config.num_tv, self.config.num_tiv)
        for block in self.blocks:
            q, k, v = block.qkv(x, rotary)
            x = block.finish(x, sif_attention(q, k, v, layout))
        x = x[:, tiv.shape[1] :].unflatten(1, frames.shape[1:3])
        return self._pixels(x[:, :, self.config.num_tv :])


def build(config: TivTokConfig, dense_encoder: bool = False, joint_decoder: bool = False) -> TivTok:
    """A new model, without SIF or without broadcasting where asked; it begins with the same weights in any case."""
    model = TivTok(config)
    if dense_encoder:
        model.encoder = _with_weights_of(model.encoder, DenseEncoder(config))
    if joint_decoder:
        model.decoder = _with_weights_of(model.decoder, JointDecoder(config))
    return model


def _with_weights_of(half: nn.Module, other: Half) -> Half:
    other.load_state_dict(half.state_dict())
    return other


def _dense(batch: int, rows: int) -> SifLayout:
    """All rows are TIV rows, so that each sees all."""
    return SifLayout.uniform(batch, rows, 0, 0)
