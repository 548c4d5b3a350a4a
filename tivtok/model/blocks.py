"""The transformer block of both halves: pre-norm attention and MLP, with the attention itself left to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from tivtok.model.config import TivTokConfig
from tivtok.model.rope import Rotary
from tivtok_kernels.prepare import prepare_qk


class Block(nn.Module):
    """``finish(x, attention(*qkv(x)))``: the caller chooses who sees whom between the two calls."""

    def __init__(self, config: TivTokConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.qk_norm = nn.ParameterList(torch.ones(config.head_dim) for _ in range(2)) if config.qk_norm else None
        self.to_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width), nn.GELU(), nn.Linear(config.mlp_ratio * width, width)
        )

    def qkv(self, x: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., rows, width) -> q, k, v (..., rows, heads, head_dim), q and k rotated where a table is given."""
        norm = None if self.qk_norm is None else (self.qk_norm[0], self.qk_norm[1])
        return prepare_qk(self.to_qkv(self.attention_norm(x)), self.heads, rotary, norm)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual updates of x (..., rows, width) from the attention's (..., rows, heads, head_dim)."""
        x = x + self.to_out(attended.flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


class Blocks(nn.ModuleList):
    """A stack of blocks."""

    def __init__(self, config: TivTokConfig, count: int) -> None:
        super().__init__(Block(config) for _ in range(count))

    def __iter__(self) -> Iterator[Block]:
        return cast("Iterator[Block]", super().__iter__())


def init_weights(module: nn.Module) -> None:
    """ViT initialisation: truncated normal of 0.02 for weights, zero for biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def learned_tokens(count: int, width: int) -> nn.Parameter:
    """(count, width) learned token embeddings, N(0, 0.02)."""
    return nn.Parameter(torch.randn(count, width) * 0.02)
