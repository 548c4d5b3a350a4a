"""Tokens gathered in memory, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tivtok.chunks.sharing import merge_tiv
from tivtok.model.quantizer import nearest
from tivtok.tokens.tokens import Tokens


class TokenCollector:
    """Collector of tokens in memory, for a batch of B videos, as `TokenWriter` collects them in a file."""

    def __init__(self) -> None:
        self._tiv: list[Tensor] = []
        self._tv: list[Tensor] = []

    def add(self, tiv: Tensor, tv: Tensor) -> None:
        """Take the next chunk: its TIV tokens (B, N_TIV, D) and the TV tokens (B, T, N_TV, D) of its T frame groups."""
        self._tiv.append(tiv)
        self._tv.append(tv)

    def close(self, set_of_chunk: Tensor, fields: dict[str, Any]) -> Tokens:
        """The tokens, with each TIV set the mean of its chunks (Eq. 6).

        Args:
            set_of_chunk: int64, ascending from 0: the TIV set of each chunk.
            fields: those of `Tokens` that are no tensors.
        """
        tiv, levels = merge_tiv(torch.stack(self._tiv, dim=1), set_of_chunk), fields.get("levels")
        groups_of_chunk = torch.tensor([tv.shape[1] for tv in self._tv])
        return Tokens(
            tiv=tiv if levels is None else nearest(tiv, levels),  # the mean of codes is none
            tv=torch.cat(self._tv, dim=1),
            tiv_index=set_of_chunk.repeat_interleave(groups_of_chunk).to(self._tv[0].device),
            **fields,
        )
