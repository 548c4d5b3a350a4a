"""Nested tokens: any number of the first ones is decoded, and nothing of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tivtok import TivTok, TivTokConfig, Tokens
from tivtok.model.rope import Rotary, nested_places, places
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


@pytest.fixture(
    params=[(decoder, where) for decoder in ("shared", "per_frame") for where in ("none", "grid", "tiv-grid")]
)
def model(request: pytest.FixtureRequest) -> TivTok:
    torch.manual_seed(0)
    decoder, latent_positions = request.param
    return TivTok(CONFIG.replace(decoder=decoder, latent_positions=latent_positions, initialization="local")).eval()


def other_tokens(model: TivTok, tiv: list[int], tv: list[int]) -> TivTok:
    """A model of these learned tokens alone, in this order, with the same weights; its tokens are not nested."""
    other = TivTok(model.config.replace(num_tiv=len(tiv), num_tv=len(tv), nested=False))
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    for names, kept in ((("encoder.tiv", "decoder.tiv_embedding"), tiv), (("encoder.tv", "decoder.tv_embedding"), tv)):
        for name in names:
            weights[name] = weights[name][kept]
    other.load_state_dict(weights)
    return other.eval()


def smaller(model: TivTok, num_tiv: int, num_tv: int, monkeypatch: pytest.MonkeyPatch) -> TivTok:
    """A model of so few tokens with the same weights and places, decoding only."""
    other = other_tokens(model, list(range(num_tiv)), list(range(num_tv)))

    def rotary(grid: tuple[int, int, int], like: Tensor, tv: int, tokens_before: int = 0) -> Rotary:
        whole = model.decoder._rotary(grid, like, CONFIG.num_tv, CONFIG.num_tiv)
        first_patch = CONFIG.num_tiv + CONFIG.num_tv
        of_group = [*range(CONFIG.num_tiv, CONFIG.num_tiv + tv), *range(first_patch, len(whole[0]))] if grid[0] else []
        rows = [*range(tokens_before), *of_group]
        return whole[0][rows], whole[1][rows]

    monkeypatch.setattr(other.decoder, "_rotary", rotary)
    return other


def in_reading_order(count: int) -> list[int]:
    """Which nested token has the place of each one that is not nested."""
    nested = nested_places(count).tolist()
    return [nested.index(place) for place in places(count).tolist()]


@torch.no_grad()
@pytest.mark.parametrize("budget", [(1, 1), (4, 3), (6, 2)])
@pytest.mark.parametrize("size", [(16, 24), (9, 40)])
def test_the_first_tokens_are_decoded_as_by_a_model_that_has_no_others(
    model: TivTok, budget: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = torch.nn.functional.interpolate(VIDEO, (19, *size))
    tokens = model.encode(video, 2, num_tiv=budget[0], num_tv=budget[1])
    assert (tokens.tiv.shape[2], tokens.tv.shape[2]) == budget
    whole = model.encode(video, 2)
    assert torch.equal(tokens.tiv, whole.tiv[:, :, : budget[0]]) and torch.equal(tokens.tv, whole.tv[:, :, : budget[1]])
    other = smaller(model, *budget, monkeypatch)
    expected = other.decode(replace(tokens, model_id=other.model_id))
    torch.testing.assert_close(model.decode(tokens), expected)
    torch.testing.assert_close(model.decode(tokens, frames=[17, 2]), expected[:, :, [17, 2]])
    assert not torch.equal(model.decode(whole), expected)


@torch.no_grad()
def test_all_of_them_are_what_they_are_in_reading_order(model: TivTok) -> None:
    """Nothing but the order of their places differs from a model whose tokens are not nested."""
    tiv, tv = in_reading_order(CONFIG.num_tiv), in_reading_order(CONFIG.num_tv)
    if model.config.latent_positions == "none":
        assert torch.equal(model(VIDEO), other_tokens(model, [*range(6)], [*range(3)])(VIDEO))
    plain = other_tokens(model, tiv, tv)
    ours, theirs = model.encode(VIDEO), plain.encode(VIDEO)
    torch.testing.assert_close(ours.tiv[:, :, tiv], theirs.tiv)
    torch.testing.assert_close(ours.tv[:, :, tv], theirs.tv)
    torch.testing.assert_close(model.decode(ours), plain.decode(theirs))
    assert torch.equal(model(VIDEO, budget=(6, 3)), model(VIDEO))
    assert not torch.allclose(model(VIDEO, budget=(3, 1)), model(VIDEO))


@torch.no_grad()
def test_places_of_tokens_matter_where_they_have_some(model: TivTok) -> None:
    unordered = other_tokens(model, [*range(6)], [*range(3)])
    where = model.config.latent_positions
    assert torch.allclose(model(VIDEO), unordered(VIDEO), atol=1e-5) == (where == "none")


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
    plain = other_tokens(model, [*range(6)], [*range(3)])
    with pytest.raises(ValueError, match="num_tv is for models with nested tokens: model nested needs all of them"):
        plain.encode(VIDEO, num_tv=1)
    with pytest.raises(TokensError, match="N_TIV, N_TV, D and frame groups"):
        plain.decode(replace(tokens, model_id=plain.model_id))
