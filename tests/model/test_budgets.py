"""Tokens chosen for a quality: as few as reach it, kept, stored and decoded as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_nested import CONFIG as NESTED
from torch import Tensor

from tivtok import TivTok, Tokens
from tivtok.budgets import Budget, fit
from tivtok.editing import swap
from tivtok.pipeline import Encoder
from tivtok.refinement import refine
from tivtok.streaming import decode_stream, encode_to_file, encode_within
from tivtok.tokens import Counts, LatentStats, TokensError
from tivtok.tokens.batches import collate, unflatten
from tivtok.tokens.rows import from_row, to_row
from tivtok.video import video_to_frames

CONFIG = NESTED.replace(num_tv=4, latent_positions="grid")
GROUPS = 10  # of 39 frames, in two TIV sets


class Planted(TivTok):
    """Decodes to what is known: a frame group of value v is off by 1 / (TIV tokens + need of v * TV tokens)."""

    def decode_groups(self, prepared: list, tv: Tensor, groups_of_set: list[int], height: int, width: int) -> Tensor:
        level = tv[:, :, 0, 0]  # (B, T): the group's value, from `planted`
        error = 1 / (prepared[0][0].shape[1] + need(level) * tv.shape[2])
        return (level + error)[:, None, :, None, None, None].expand(-1, 3, -1, 4, height, width).flatten(2, 3)


def need(level: Tensor) -> Tensor:
    return torch.where(level > 0, 3.0, 6.0)


def planted(sets: int = 2) -> tuple[Planted, Tokens, Tensor]:
    """The model, tokens whose first number is the group's value, and the video of these values."""
    torch.manual_seed(0)
    model = Planted(CONFIG).eval()
    levels = torch.tensor([-0.5, 0.25] * (GROUPS // 2))
    tv = torch.randn(1, GROUPS, 4, 8)
    tv[:, :, 0, 0] = levels
    index = torch.arange(GROUPS) * sets // GROUPS
    video = levels.repeat_interleave(4)[None, None, :39, None, None].expand(1, 3, -1, 16, 24)
    tokens = Tokens(torch.randn(1, sets, 6, 8), tv, index, 39, 16, 24, 25.0, "nested", model.model_id)
    return model, tokens, video


def psnr(error: float) -> float:
    return float(10 * torch.log10(torch.tensor(4 / error**2)))


@pytest.mark.parametrize("target", [8, 11, 14.5, 18])
def test_the_fewest_tokens_that_reach_it_are_kept(target: float) -> None:
    """By trial of every number: TIV tokens of a set (1 to 6, all are among those tried) and TV tokens of each group."""
    model, tokens, video = planted()
    chosen, missed = fit(model, tokens, video, psnr(1 / target))
    assert missed == 0 and chosen.counts is not None
    best = min(
        (num_tiv + sum(counts), -num_tiv, counts)
        for num_tiv in range(1, 7)
        if (counts := [fewest(num_tiv, float(level), target) for level in tokens.tv[0, :5, 0, 0]]) and max(counts) <= 4
    )
    assert chosen.counts.tiv[0] + sum(chosen.counts.tv[:5]) == best[0]
    assert chosen.counts.tv[:5] == tuple(best[2]) and chosen.counts.tiv[0] == -best[1]
    assert chosen.num_tokens < tokens.num_tokens


def fewest(num_tiv: int, level: float, target: float) -> int:
    return next(n for n in range(1, 100) if num_tiv + float(need(torch.tensor(level))) * n >= target - 1e-3)


def test_what_cannot_be_reached_is_as_good_as_all_tokens_make_it() -> None:
    model, tokens, video = planted()
    chosen, missed = fit(model, tokens, video, psnr(1 / 20))  # where the need is 3 there is no more than 6 + 3 * 4 = 18
    assert missed == 5 and chosen.counts == Counts((6, 6), (3, 4) * 5)
    nothing, missed = fit(model, tokens, video, psnr(1 / 1000))
    assert missed == GROUPS and nothing.counts == Counts((6, 6), (4,) * GROUPS)


@pytest.fixture(scope="module")
def model() -> TivTok:
    torch.manual_seed(1)
    return TivTok(CONFIG).eval()


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.randint(0, 256, (1, 3, 39, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def ragged(model: TivTok, video: Tensor) -> Tokens:
    with torch.no_grad():
        tokens = model.encode(video, 2)
    return replace(tokens, counts=Counts((2, 5), (1, 4, 4, 2, 3, 1, 1, 4, 2, 3))).cleared()


def values(tokens: Tokens) -> tuple[Tensor, Tensor]:
    return tokens.tiv, tokens.tv


@torch.no_grad()
def test_each_group_is_decoded_from_its_own_numbers(model: TivTok, ragged: Tokens) -> None:
    assert ragged.counts is not None
    decoded = model.decode(ragged)
    for group, (tiv_set, count) in enumerate(zip(ragged.tiv_index.tolist(), ragged.counts.tv, strict=True)):
        alone = model.cut(replace(ragged, counts=None), ragged.counts.tiv[tiv_set], count)
        frames = slice(4 * group, min(4 * group + 4, 39))
        torch.testing.assert_close(decoded[:, :, frames], model.decode(alone, frames))
    wanted = [38, 0, 17, 4, 5, 0]
    torch.testing.assert_close(model.decode(ragged, wanted), decoded[:, :, wanted])
    streamed = torch.cat(list(decode_stream(model, ragged)))
    assert (streamed.int() - video_to_frames(decoded[0]).int()).abs().max() <= 1
    assert ragged.num_tokens == 2 + 5 + 25 and ragged.num_values == 32 * 8


def test_empty_places_count_for_nothing(model: TivTok, ragged: Tokens) -> None:
    tiv, tv = (
        torch.where(there[..., None], x, torch.nan) for x, there in zip(values(ragged), ragged.there(), strict=True)
    )
    spoilt = replace(ragged, tiv=tiv, tv=tv)
    assert torch.equal(model.decode(spoilt), model.decode(ragged))
    assert spoilt.cleared() == ragged


@pytest.mark.parametrize("sets", [1, 2])
@torch.no_grad()
def test_encode_streamed_and_in_memory_choose_alike(model: TivTok, video: Tensor, sets: int, tmp_path: Path) -> None:
    plain = model.encode(video, sets)
    errors = (model.decode(plain).clamp(-1, 1) - (video / 127.5 - 1)).square().mean((0, 1, 3, 4))
    target = float(10 * torch.log10(4 / errors.max())) - 0.05
    tokens = model.encode(video, sets, psnr=target)
    assert tokens.counts is not None and tokens.num_tokens < plain.num_tokens
    made = (model.decode(tokens).clamp(-1, 1) - (video / 127.5 - 1)).square().mean((0, 1, 3, 4))
    of_groups = torch.stack([part.mean() for part in made.split(4)])
    assert (10 * torch.log10(4 / of_groups) > target - 1e-3).all()
    chunks = video[0].permute(1, 2, 3, 0).split(8)
    streamed = encode_within(model, chunks, Budget(psnr=target), sets)
    assert streamed.missed == 0 and streamed.tokens.counts == tokens.counts
    torch.testing.assert_close(streamed.tokens.tv + 0, tokens.tv)
    missed = encode_to_file(model, chunks, tmp_path / "a.tivtok", sets, budget=Budget(num_tiv=3, psnr=99.0))
    got = Tokens.load(tmp_path / "a.tivtok")
    assert missed == GROUPS and got.counts is not None and got.tiv.shape[2] == 3 >= max(got.counts.tiv)
    encode_to_file(model, chunks, tmp_path / "a.tivtok", sets, budget=Budget(num_tiv=3, num_tv=1))
    torch.testing.assert_close(Tokens.load(tmp_path / "a.tivtok").tiv, plain.tiv[:, :, :3])


def test_what_is_made_of_such_tokens(model: TivTok, ragged: Tokens) -> None:
    stats = LatentStats.of([(ragged.tiv, ragged.tv)], model.model_id)
    back = ragged.normalize(stats).denormalize(stats)
    assert back.counts == ragged.counts
    torch.testing.assert_close(back.tv, ragged.tv)
    row = from_row(to_row(ragged, "float32"))
    assert row == ragged
    other = replace(ragged, counts=None)
    sequence = collate([ragged, other])
    assert (sequence.kind[0] > 0).sum() == 32 and (sequence.kind[1] > 0).sum() == 2 * 6 + 10 * 4
    assert unflatten(sequence, [ragged, other]) == [ragged, other]
    mixed = swap(other, ragged)
    assert ragged.counts is not None and mixed.counts == Counts((6, 6), ragged.counts.tv)
    assert swap(other, other).counts is None
    assert model.cut(ragged, num_tiv=3, num_tv=2).counts == Counts((2, 3), (1, 2, 2, 2, 2, 1, 1, 2, 2, 2))


def test_what_cannot_be(model: TivTok, ragged: Tokens, video: Tensor) -> None:
    plain = TivTok(CONFIG.replace(nested=False))
    with pytest.raises(ValueError, match="psnr is for models with nested tokens: model nested needs all of them"):
        plain.encode(video, psnr=20)
    with pytest.raises(TokensError, match="numbers of their own, and model nested needs all of them"):
        plain.decode(replace(ragged, model_id=plain.model_id))
    with pytest.raises(ValueError, match="psnr must be a number of dB above 0, got -3"):
        model.encode(video, psnr=-3)
    with pytest.raises(ValueError, match="psnr does not go with refine"):
        model.encode(video, psnr=20, refine=2)
    with pytest.raises(ValueError, match="tokens whose numbers differ cannot be refined"):
        refine(model, ragged, video, 1)
    with pytest.raises(ValueError, match="the tokens have been chosen already"):
        fit(model, ragged, video, 20)
    with pytest.raises(ValueError, match=r"at_once must be at least 1, and 1 with refine or budget\.psnr, got 2"):
        Encoder(at_once=2, budget=Budget(psnr=20))
    with pytest.raises(TokensError, match="counts must be 10 numbers of TV tokens from 1 to 4, got 9"):
        replace(ragged, counts=Counts((2, 5), (1,) * 9))
    with pytest.raises(TokensError, match="counts must be 2 numbers of TIV tokens from 1 to 6, got 2"):
        replace(ragged, counts=Counts((2, 7), (1,) * 10))
