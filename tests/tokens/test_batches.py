"""One sequence per video: every token in its place, and back."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

from tivtok.tokens import Tokens, TokensError
from tivtok.tokens.batches import PADDING, TIV, TV, LengthBuckets, collate, flatten, unflatten


def tokens_of(sets: int, groups: int, batch: int = 1) -> Tokens:
    generator = torch.Generator().manual_seed(sets + groups)
    tiv = torch.randn(batch, sets, 5, 4, generator=generator)
    tv = torch.randn(batch, groups, 2, 4, generator=generator)
    index = torch.arange(groups) * sets // groups
    return Tokens(tiv, tv, index, 4 * groups - 1, 16, 16, 25.0, "tiny", "model")


@pytest.mark.parametrize("sets, groups, batch", [(1, 1, 1), (3, 7, 2)])
def test_every_token_is_where_its_ids_say(sets: int, groups: int, batch: int) -> None:
    tokens = tokens_of(sets, groups, batch)
    flat = flatten(tokens)
    assert flat.values.shape == (batch, tokens.num_tokens, 4)
    for video in range(batch):
        for place in range(tokens.num_tokens):
            kind, group, position, tiv_set = (
                int(x[video, place]) for x in (flat.kind, flat.group, flat.position, flat.tiv_set)
            )
            source = {TIV: tokens.tiv, TV: tokens.tv}[kind]
            assert torch.equal(flat.values[video, place], source[video, group, position])
            assert tiv_set == (group if kind == TIV else int(tokens.tiv_index[group]))


def test_videos_of_all_lengths_and_back() -> None:
    videos = [tokens_of(1, 3), tokens_of(2, 9), tokens_of(1, 1)]
    batch = collate(videos)
    lengths = [tokens.num_tokens for tokens in videos]
    assert batch.values.shape == (3, max(lengths), 4)
    assert (batch.kind != PADDING).sum(dim=1).tolist() == lengths
    assert not batch.values[batch.kind == PADDING].any()
    for one, other in zip(unflatten(batch, videos), videos, strict=True):
        assert torch.equal(one.tiv, other.tiv) and torch.equal(one.tv, other.tv)
        assert torch.equal(one.tiv_index, other.tiv_index)


def test_batches_of_one_length() -> None:
    """Every video once in each epoch, beside those of its length, in an order that seed and epoch decide."""
    lengths = [3, 9, 1] * 5 + [2]
    buckets, other = LengthBuckets(lengths, 3), LengthBuckets(lengths, 3, seed=1)
    first, second = list(buckets), list(buckets)
    assert len(buckets) == len(first) == 6 and all(
        sorted(chain(*epoch)) == list(range(16)) for epoch in (first, second)
    )
    spans = sorted(sorted(lengths[i] for i in batch) for batch in first)
    assert spans == [[1, 1, 1], [1, 1, 2], [3, 3, 3], [3, 3, 9], [9], [9, 9, 9]]
    assert first != second != list(other) and list(LengthBuckets(lengths, 3)) == first
    again = LengthBuckets(lengths, 3)
    again.epoch = 1
    assert list(again) == second
    videos = [tokens_of(1, groups) for groups in lengths]
    for batch in DataLoader(videos, batch_sampler=LengthBuckets(lengths, 5), collate_fn=collate):
        assert batch.values.shape[0] <= 5


def test_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        LengthBuckets([1], 0)
    with pytest.raises(TokensError, match="at least one video"):
        collate([])
    with pytest.raises(TokensError, match="one model, got tokens of model, other"):
        collate([tokens_of(1, 1), replace(tokens_of(1, 1), model_id="other")])
    with pytest.raises(TokensError, match="got a batch"):
        collate([tokens_of(1, 1, batch=2)])
    batch = collate([tokens_of(1, 3), tokens_of(1, 2)])
    with pytest.raises(TokensError, match="of 2 videos, got 1"):
        unflatten(batch, [tokens_of(1, 3)])
    with pytest.raises(TokensError, match="expected 9 like the video's"):
        unflatten(batch, [tokens_of(1, 2), tokens_of(1, 2)])
