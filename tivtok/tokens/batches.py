"""Tokens of several videos as one batch, and as one sequence for a transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from tivtok.tokens.format import TokensError
from tivtok.tokens.tokens import Tokens

# What a place of a `TokenSequence` holds.
PADDING, TIV, TV = 0, 1, 2


@dataclass(frozen=True)
class TokenSequence:
    """Tokens of B videos as sequences of L places: TIV sets first, then TV tokens, frame group after frame group.

    Attributes:
        values: (B, L, D), zero in padding.
        kind: (B, L) int64: `PADDING`, `TIV` or `TV`.
        group: (B, L) int64: the TIV set or the frame group, from 0.
        position: (B, L) int64: the place within it, from 0.
        tiv_set: (B, L) int64: the TIV set that goes with the place; a TV token's is that of its frame group.
    """

    values: Tensor
    kind: Tensor
    group: Tensor
    position: Tensor
    tiv_set: Tensor


def flatten(tokens: Tokens) -> TokenSequence:
    """One sequence per video of a batch, without padding: L = ``tokens.num_tokens``."""
    batch, sets, num_tiv, _ = tokens.tiv.shape
    groups, num_tv = tokens.tv.shape[1:3]
    device = tokens.tv.device
    there = torch.cat([mask.flatten() for mask in tokens.there()]).to(device)

    def columns(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second]).to(device)[there].expand(batch, -1)

    set_numbers = torch.arange(sets, device=device).repeat_interleave(num_tiv)
    group_numbers = torch.arange(groups, device=device).repeat_interleave(num_tv)
    return TokenSequence(
        values=torch.cat([tokens.tiv.flatten(1, 2), tokens.tv.flatten(1, 2)], dim=1)[:, there],
        kind=columns(torch.full_like(set_numbers, TIV), torch.full_like(group_numbers, TV)),
        group=columns(set_numbers, group_numbers),
        position=columns(torch.arange(num_tiv).repeat(sets), torch.arange(num_tv).repeat(groups)),
        tiv_set=columns(set_numbers, tokens.tiv_index[group_numbers]),
    )


def unflatten(sequence: TokenSequence, like: Sequence[Tokens]) -> list[Tokens]:
    """The inverse of `collate`: the tokens of each video, with the values of ``sequence``.

    Args:
        like: the videos that the sequence was made of, for all else that tokens have.

    Raises:
        TokensError: the sequence is of other videos.
    """
    if len(like) != len(sequence.values):
        raise TokensError(f"the sequences are of {len(sequence.values)} videos, got {len(like)} to be like")
    return [
        _unflatten(values, kind, one) for values, kind, one in zip(sequence.values, sequence.kind, like, strict=True)
    ]


def collate(videos: Sequence[Tokens]) -> TokenSequence:
    """Videos of any lengths as one batch of sequences, padded at their ends: a DataLoader's ``collate_fn``.

    Raises:
        TokensError: there are none, one of them is a batch, or they are of several models.
    """
    if not videos:
        raise TokensError("there must be at least one video to collate")
    models = {tokens.model_id for tokens in videos}
    if len(models) > 1:
        raise TokensError(f"the videos must be of one model, got tokens of {', '.join(sorted(models))}")
    if any(tokens.tiv.shape[0] != 1 for tokens in videos):
        raise TokensError("each of the videos must be one, got a batch")
    parts = [flatten(tokens) for tokens in videos]
    return TokenSequence(
        *(
            pad_sequence([getattr(part, name)[0] for part in parts], batch_first=True)
            for name in ("values", "kind", "group", "position", "tiv_set")
        )
    )


class LengthBuckets(Sampler[list[int]]):
    """Batches of videos of about one length, so that `collate` pads little: a DataLoader's ``batch_sampler``.

    Each epoch has every video once, those of one length in another order and the batches, too; which, depends on the
    seed and the epoch alone.

    Args:
        lengths: of each video, in frames or in tokens; a record in ``TokenDataset.videos`` has "num_frames".
        batch_size: videos in a batch; one batch may have fewer.
        seed: what the order depends on.

    Attributes:
        epoch: counted up by each pass; set it to go on where another program was.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.lengths = np.asarray(lengths, np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = random.permutation(len(self.lengths))
        order = order[self.lengths[order].argsort(kind="stable")]
        for number in random.permutation(len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size].tolist()


def _unflatten(values: Tensor, kind: Tensor, like: Tokens) -> Tokens:
    tiv, tv = values[kind == TIV], values[kind == TV]
    places = [mask.to(values.device) for mask in like.there()]
    if any(x.shape != (int(there.sum()), like.tv.shape[3]) for x, there in zip((tiv, tv), places, strict=True)):
        raise TokensError(
            f"the sequence has {len(tiv)} TIV and {len(tv)} TV tokens of {values.shape[1]} values, "
            f"expected {like.num_tokens} like the video's"
        )
    made = [values.new_zeros(x.shape) for x in (like.tiv, like.tv)]
    for whole, x, there in zip(made, (tiv, tv), places, strict=True):
        whole[0, there] = x
    return replace(like, tiv=made[0], tv=made[1])
