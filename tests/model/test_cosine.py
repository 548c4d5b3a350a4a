"""The linear code of `transform` "cosine": orthonormal, of any size, and TV tokens that follow a shared TIV set."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import ProcessGroup

from tivtok.model.config import TivTokConfig
from tivtok.model.cosine import CosineCode, cosine_basis
from tivtok.tokenizer import TivTok

CONFIG = TivTokConfig(
    num_tiv=6,
    num_tv=2,
    latent_dim=8,
    width=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    patch=(2, 4, 4),
    groups_per_chunk=3,
    native_size=(16, 24),
    transform="cosine",
)


@pytest.fixture(params=["shared", "per_frame"])
def model(request: pytest.FixtureRequest) -> TivTok:
    torch.manual_seed(0)
    return TivTok(CONFIG.replace(decoder=request.param)).eval()


def noise(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def test_the_basis_is_orthonormal() -> None:
    basis = cosine_basis(9, 9)
    torch.testing.assert_close(basis @ basis.T, torch.eye(9, dtype=basis.dtype))
    assert not cosine_basis(5, 3)[3:].any()


def test_tokens_come_back() -> None:
    """What tokens show is coded as these tokens: the code is a projection. Differences from the mean have mean zero."""
    code = CosineCode(CONFIG)
    tiv = torch.randn(2, 6, 8)
    tv = torch.randn(2, 3, 2, 8)
    tv = tv - tv.mean(dim=1, keepdim=True)
    video = code.decode(tiv[:, None].expand(-1, 3, -1, -1), tv, 16, 24).transpose(1, 2).flatten(2, 3)
    for got, wanted in zip(code.encode(video), (tiv, tv), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 24), (32, 24), (8, 8), (4, 60)])
def test_brightness_and_colour_of_any_size(size: tuple[int, int]) -> None:
    code = CosineCode(CONFIG)
    colour = torch.tensor([0.5, -0.25, 0.75])
    video = colour[None, :, None, None, None].expand(1, 3, 6, *size)
    tiv, tv = code.encode(video)
    torch.testing.assert_close(tiv, code.encode(video[..., :4, :4])[0], rtol=1e-4, atol=1e-4)
    decoded = code.decode(tiv[:, None].expand(-1, 3, -1, -1), tv, *size)
    torch.testing.assert_close(decoded.mean((0, 1, 3, 4, 5)), colour, rtol=1e-4, atol=1e-4)


def test_a_new_model_is_its_linear_code(model: TivTok) -> None:
    video = noise(6)
    tiv, tv = model.encode_chunks(video)
    code = CosineCode(CONFIG)
    linear = code.decode(tiv.expand(-1, 3, -1, -1), tv, 16, 24).transpose(1, 2).flatten(2, 3)
    torch.testing.assert_close(model(video), linear, rtol=1e-4, atol=1e-4)


def test_transformers_add_to_it(model: TivTok) -> None:
    for last in (model.encoder.to_latent, model.decoder.to_pixels):
        torch.nn.init.normal_(last.weight, std=0.1)
    video = noise(12)
    model(video).square().sum().backward()
    assert all(x.grad is not None and x.grad.any() for name, x in model.named_parameters() if "bias" not in name)


def test_sharing_loses_only_what_tv_tokens_cannot_say(model: TivTok) -> None:
    """Two chunks, each of one colour: TV tokens say the difference from the set that they share."""
    video = torch.cat([torch.full((1, 3, 6, 16, 24), level) for level in (-0.5, 0.5)], dim=2)
    with torch.no_grad():
        shared = model.decode(model.encode(video, tiv_sets=1))
        in_training = model(video)
    torch.testing.assert_close(shared, video, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(in_training, video, rtol=1e-3, atol=1e-3)


def test_sets_of_their_own_change_nothing(model: TivTok) -> None:
    video = noise(12)
    with torch.no_grad():
        tokens = model.encode(video, tiv_sets=2)
        _, tv = model.encode_chunks(video)
    torch.testing.assert_close(tokens.tv, tv)


def test_what_it_does_not_go_with(model: TivTok) -> None:
    with pytest.raises(ValueError, match='quantizer must be "none" with transform "cosine"'):
        CONFIG.replace(quantizer="fsq")
    with pytest.raises(ValueError, match="group must be None"):
        model.encoder(noise(6), group=ProcessGroup.__new__(ProcessGroup))
