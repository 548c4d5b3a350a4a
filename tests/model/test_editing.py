"""Tokens taken apart and put together anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tivtok.editing import grey_tokens, swap, tiv_only
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens, TokensError


@pytest.fixture(scope="module")
def model() -> TivTok:
    torch.manual_seed(0)
    model = TivTok(TivTokConfig.preset("tiny").replace(width=48, heads=2, encoder_layers=1, decoder_layers=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def encode(model: TivTok, num_frames: int, tiv_sets: int, seed: int = 0, height: int = 16) -> Tokens:
    video = torch.rand(1, 3, num_frames, height, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.no_grad():
        return model.encode(video, tiv_sets, fps=25.0 + seed)


def test_swap_takes_tiv_of_one_and_the_rest_of_the_other(model: TivTok) -> None:
    a, b = encode(model, 48, 3), encode(model, 20, 1, seed=1, height=8)
    mixed = swap(a, b)
    assert torch.equal(mixed.tiv, a.tiv) and torch.equal(mixed.tv, b.tv)
    assert (mixed.num_frames, mixed.height, mixed.fps) == (20, 8, 26.0)
    assert mixed.tiv_index.tolist() == [0, 0, 1, 1, 2]  # the timeline 0 0 0 0 1 1 1 1 2 2 2 2, stretched to 5
    with torch.no_grad():
        assert model.decode(mixed).shape == (1, 3, 20, 8, 24)
        assert torch.equal(model.decode(swap(b, b)), model.decode(b))
    assert swap(b, a).tiv_index.tolist() == [0] * 12


def test_swap_of_what_does_not_fit(model: TivTok) -> None:
    a = encode(model, 16, 1)
    with pytest.raises(TokensError, match="both must be made by one model"):
        swap(a, replace(a, model_id="other"))
    two = replace(a, tiv=a.tiv.repeat(2, 1, 1, 1), tv=a.tv.repeat(2, 1, 1, 1))
    with pytest.raises(TokensError, match="as many videos"):
        swap(a, two)


def test_what_one_kind_says_does_not_depend_on_the_other(model: TivTok) -> None:
    a, b = encode(model, 32, 2), encode(model, 32, 2, seed=1)
    grey = grey_tokens(model, 16, 24)
    assert torch.equal(tiv_only(a, grey).tv, tiv_only(b, grey).tv)
    with torch.no_grad():
        assert torch.equal(model.decode(tiv_only(a, grey)), model.decode(tiv_only(swap(a, b), grey)))
        groups = model.decode(tiv_only(a, grey)).unflatten(2, (-1, 4))
        torch.testing.assert_close(groups[:, :, 0], groups[:, :, 3])  # without TV tokens a TIV set is one still
        assert not torch.allclose(groups[:, :, 0], groups[:, :, 4])
