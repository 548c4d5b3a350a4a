"""The variants of the ablations, and the two that the model itself does not have: no SIF, no broadcasting.

These two have the full model's weights; only who sees whom changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tivtok.attention import SifLayout, sif_attention
from tivtok.model.config import TivTokConfig
from tivtok.model.decoder import Decoder, Prepared
from tivtok.model.encoder import Encoder
from tivtok.tokenizer import TivTok

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


def undivided(model: TivTok) -> TivTok:
    """``model`` without scopes: every token sees the whole chunk, in both halves."""
    model.encoder, model.decoder = DenseEncoder(model.config), JointDecoder(model.config)
    return model


def _dense(batch: int, rows: int) -> SifLayout:
    """All rows are TIV rows, so that each sees all."""
    return SifLayout.uniform(batch, rows, 0, 0)


@dataclass(frozen=True)
class Variant:
    """One change to the full model.

    Attributes:
        changes: of the config.
        dense_encoder, joint_decoder: without SIF, without broadcasting.
        reuse: the chunks of a clip share one TIV set, in training and measuring; otherwise each has its own.
        paper_db: PSNR of this variant minus that of the full model in the paper (32 frames, 256x256), where it says.
    """

    title: str
    changes: dict[str, Any]
    dense_encoder: bool = False
    joint_decoder: bool = False
    reuse: bool = True
    paper_db: float | None = None

    @property
    def config(self) -> TivTokConfig:
        return FULL.replace(**self.changes)

    def build(self) -> TivTok:
        model = TivTok(self.config)
        if self.dense_encoder:
            model.encoder = DenseEncoder(self.config)
        if self.joint_decoder:
            model.decoder = JointDecoder(self.config)
        return model

    def tokens(self, num_frames: int) -> int:
        chunks = num_frames // self.config.chunk_frames
        return self.config.num_tokens(num_frames, 1 if self.reuse else chunks)


# Without a split, or without reuse, the numbers of tokens are those that make 40 of 32 frames, as in the full model.
VARIANTS = {
    "full": Variant("full: SIF, shared broadcasting, TIV:TV 3:1, one TIV set", {}, paper_db=0.0),
    "no-sif": Variant("no SIF (dense encoder)", {}, dense_encoder=True, paper_db=19.67 - 29.05),
    "no-broadcasting": Variant("no broadcasting (joint decoder)", {}, joint_decoder=True, paper_db=17.69 - 29.05),
    "no-split": Variant("no TIV/TV split", {"num_tiv": 0, "num_tv": 5}, paper_db=27.24 - 29.05),
    "no-reuse": Variant("no reuse across chunks", {"num_tiv": 12}, reuse=False, paper_db=25.81 - 29.05),
    "per-frame": Variant("per-frame decoder", {"decoder": "per_frame"}),
    "ratio-1-1": Variant("TIV:TV 1:1", {"num_tiv": 16, "num_tv": 4}),
    "ratio-1-3": Variant("TIV:TV 1:3", {"num_tiv": 8, "num_tv": 6}),
    "softvq": Variant("SoftVQ (K 8192, tau 0.07)", {"quantizer": "softvq"}),
}
