"""Taking tokens apart and recombining them: what each kind holds, and one video with another's TIV tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from tivtok.tokenizer import TivTok
from tivtok.tokens import Counts, Tokens, TokensError


@torch.no_grad()
def grey_tokens(model: TivTok, height: int, width: int) -> Tokens:
    """The tokens of one frame group with nothing in it (`TivTok.encode_grey`)."""
    tiv, tv = model.encode_grey(height, width)
    return Tokens(
        tiv,
        tv,
        tiv_index=torch.zeros(1, dtype=torch.int64, device=tiv.device),
        num_frames=model.config.frames_per_group,
        height=height,
        width=width,
        fps=None,
        preset=model.config.name,
        model_id=model.model_id,
    )


def tiv_only(tokens: Tokens, grey: Tokens) -> Tokens:
    """Replace the TV tokens of every frame group by those of grey, to see what the TIV tokens hold."""
    return replace(tokens, tv=grey.tv[:, :, : tokens.tv.shape[2]].expand_as(tokens.tv))


def swap(tiv_from: Tokens, tv_from: Tokens) -> Tokens:
    """Combine the TIV tokens of one video with the TV tokens, length, size and frame rate of another.

    Where the first has several TIV sets, their timeline is stretched to the length of the second.

    Raises:
        TokensError: they were made by different models, or hold different numbers of videos.
    """
    if tiv_from.model_id != tv_from.model_id:
        raise TokensError(
            f"both must be made by one model, got {tiv_from.model_id} ({tiv_from.preset}) "
            f"and {tv_from.model_id} ({tv_from.preset})"
        )
    if tiv_from.tiv.shape[0] != tv_from.tv.shape[0] or tiv_from.tiv.shape[3] != tv_from.tv.shape[3]:
        raise TokensError(
            "both must hold as many videos, with tokens of one size, "
            f"got {tuple(tiv_from.tiv.shape)} and {tuple(tv_from.tv.shape)}"
        )
    groups = torch.arange(tv_from.tv.shape[1])
    stretched = groups * tiv_from.tv.shape[1] // tv_from.tv.shape[1]
    counts = None
    if tiv_from.counts is not None or tv_from.counts is not None:
        counts = Counts(tuple(map(int, tiv_from.there()[0].sum(1))), tuple(map(int, tv_from.there()[1].sum(1))))
    return replace(
        tv_from,
        tiv=tiv_from.tiv.to(tv_from.tv),
        counts=counts,
        tiv_index=tiv_from.sets_of(stretched).to(tv_from.tiv_index.device),
    )
