"""Nested tokens: any number of the first ones is decoded, and nothing of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tivtok import TivTok, TivTokConfig, Tokens
from tivtok.tokens import LatentStats, TokensError

CONFIG = TivTokConfig(
    name="nested",
    num_tiv=6,
    num_tv=3,
    latent_dim=8,
    width=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    groups_per_chunk=2,
    native_size=(16, 24),
    nested=True,
)
VIDEO = torch.rand(2, 3, 19, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=["shared", "per_frame"])
def model(request: pytest.FixtureRequest) -> TivTok:
    torch.manual_seed(0)
    return TivTok(CONFIG.replace(decoder=request.param)).eval()


def smaller(model: TivTok, num_tiv: int, num_tv: int) -> TivTok:
    """A model of so few tokens with the same weights."""
    other = TivTok(model.config.replace(num_tiv=num_tiv, num_tv=num_tv, nested=False))
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    for name in ("encoder.tiv", "decoder.tiv_embedding"):
        weights[name] = weights[name][:num_tiv]
    for name in ("encoder.tv", "decoder.tv_embedding"):
        weights[name] = weights[name][:num_tv]
    other.load_state_dict(weights)
    return other.eval()


@torch.no_grad()
@pytest.mark.parametrize("budget", [(1, 1), (4, 3), (6, 2)])
def test_the_first_tokens_are_decoded_as_by_a_model_that_has_no_others(model: TivTok, budget: tuple[int, int]) -> None:
    tokens = model.encode(VIDEO, 2, num_tiv=budget[0], num_tv=budget[1])
    assert (tokens.tiv.shape[2], tokens.tv.shape[2]) == budget
    whole = model.encode(VIDEO, 2)
    assert torch.equal(tokens.tiv, whole.tiv[:, :, : budget[0]]) and torch.equal(tokens.tv, whole.tv[:, :, : budget[1]])
    other = smaller(model, *budget)
    expected = other.decode(replace(tokens, model_id=other.model_id))
    torch.testing.assert_close(model.decode(tokens), expected)
    torch.testing.assert_close(model.decode(tokens, frames=[17, 2]), expected[:, :, [17, 2]])
    assert not torch.equal(model.decode(whole), expected)


@torch.no_grad()
def test_all_of_them_are_decoded_as_they_were(model: TivTok) -> None:
    plain = smaller(model, CONFIG.num_tiv, CONFIG.num_tv)
    assert torch.equal(model(VIDEO), plain(VIDEO))
    assert torch.equal(model(VIDEO, budget=(6, 3)), plain(VIDEO))
    assert not torch.equal(model(VIDEO, budget=(3, 1)), plain(VIDEO))


@torch.no_grad()
def test_cut_tokens_are_stored_normalised_and_refined(model: TivTok, tmp_path: Path) -> None:
    tokens = model.encode(VIDEO[:1], num_tiv=1, num_tv=2)
    tokens.save(tmp_path / "a.tivtok")
    assert Tokens.load(tmp_path / "a.tivtok") == tokens
    whole = model.encode(VIDEO)
    stats = LatentStats.of([(whole.tiv, whole.tv)], model.model_id)
    back = tokens.normalize(stats).denormalize(stats)
    assert back.tiv.shape == tokens.tiv.shape
    torch.testing.assert_close(back.tiv, tokens.tiv)
    assert model.encode(VIDEO[:1], refine=2, num_tiv=1, num_tv=2).tiv.shape == tokens.tiv.shape
    assert model.cut(whole, num_tv=1).tv.shape[2] == 1 and model.cut(whole) == whole


def test_what_cannot_be_cut(model: TivTok) -> None:
    tokens = model.encode(VIDEO[:1], num_tiv=4)
    with pytest.raises(ValueError, match="num_tiv must be between 1 and 4, got 5"):
        model.cut(tokens, num_tiv=5)
    with pytest.raises(ValueError, match="num_tv must be between 1 and 3, got 0"):
        model.encode(VIDEO, num_tv=0)
    plain = smaller(model, 6, 3)
    with pytest.raises(ValueError, match="num_tv is for models with nested tokens: model nested needs all of them"):
        plain.encode(VIDEO, num_tv=1)
    with pytest.raises(TokensError, match="N_TIV, N_TV, D and frame groups"):
        plain.decode(replace(tokens, model_id=plain.model_id))
    with pytest.raises(ValueError, match='nested tokens must have latent_positions "none"'):
        CONFIG.replace(latent_positions="grid")
