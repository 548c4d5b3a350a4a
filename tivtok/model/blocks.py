"""The transformer block of both halves: pre-norm attention and MLP, with the attention itself left to the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tivtok.model.config import TivTokConfig
from tivtok.model.rope import Rotary
from tivtok_kernels.prepare import prepare_qk

# q, k, v (..., rows, heads, head_dim) -> the output of attention, shaped like q. The function decides who sees whom.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """``finish(x, attend(*qkv(x)))``: the caller chooses who sees whom.

    Attributes:
        recompute: keep what the attention returns and compute the rest again in the backward pass, to save memory.
    """

    recompute = False

    def __init__(self, config: TivTokConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.rotated_heads = config.heads if config.rope_heads is None else config.rope_heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.qk_norm = nn.ParameterList(torch.ones(config.head_dim) for _ in range(2)) if config.qk_norm else None
        self.to_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width), nn.GELU(), nn.Linear(config.mlp_ratio * width, width)
        )

    def forward(self, x: Tensor, attend: Attend, rotary: Rotary | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Update the rows x (..., rows, width).

        Returns:
            x, and the keys and values (..., rows, heads, head_dim) that ``attend`` was given.
        """
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._update, x, attend, rotary, use_reentrant=False, context_fn=_KEEP_ATTENTION)
        return self._update(x, attend, rotary)

    def _update(self, x: Tensor, attend: Attend, rotary: Rotary | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self.qkv(x, rotary)
        return self.finish(x, attend(q, k, v)), (k, v)

    def qkv(self, x: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., rows, width) -> q, k, v (..., rows, heads, head_dim), q and k rotated where a table is given."""
        norm = None if self.qk_norm is None else (self.qk_norm[0], self.qk_norm[1])
        qkv = self.to_qkv(self.attention_norm(x))
        if rotary is None or self.rotated_heads == self.heads:
            return prepare_qk(qkv, self.heads, rotary, norm)
        rotated, plain = qkv.unflatten(-1, (3, self.heads, -1)).tensor_split([self.rotated_heads], dim=-2)
        with_positions = prepare_qk(rotated.flatten(-3), self.rotated_heads, rotary, norm)
        without = prepare_qk(plain.flatten(-3), self.heads - self.rotated_heads, None, norm)
        q, k, v = (torch.cat(both, dim=-2) for both in zip(with_positions, without, strict=True))
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual updates of x (..., rows, width) from the attention's (..., rows, heads, head_dim)."""
        x = x + self.to_out(attended.flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator is torch.ops.tivtok.sif_attention.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_KEEP_ATTENTION = partial(create_selective_checkpoint_contexts, _policy)


class Places(nn.Module):
    """An embedding of every place in the patch grid (``patch_positions`` "learned"), zero to begin with."""

    def __init__(self, config: TivTokConfig) -> None:
        super().__init__()
        self.grid = config.native_grid
        self.table = nn.Parameter(torch.zeros(prod(self.grid), config.width))

    def forward(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, width), interpolated where that is another grid."""
        if (rows, columns) == self.grid:
            return self.table
        table = self.table.T.unflatten(1, self.grid)[None]
        return F.interpolate(table, (rows, columns), mode="bilinear", align_corners=False)[0].flatten(1).T


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


def init_local(module: nn.Module) -> None:
    """Initialisation "local" of `TivTokConfig`, after `init_weights`.

    Queries and keys share a constant that outweighs what depends on their rows, so that scores are largest where
    rotary positions are equal.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    if isinstance(module, Blocks):
        for block in module:
            queries_and_keys = slice(0, 2 * block.to_out.in_features)
            with torch.no_grad():
                block.to_qkv.weight[queries_and_keys] *= 0.5
                block.to_qkv.bias[queries_and_keys] = 1.0
                for last in (block.to_out, block.mlp[-1]):
                    last.weight *= (2 * len(module)) ** -0.5  # so that the sum over the residual branches is of size 1


def learned_tokens(count: int, width: int) -> nn.Parameter:
    """(count, width) learned token embeddings, N(0, 0.02)."""
    return nn.Parameter(torch.randn(count, width) * 0.02)
