"""Quantizers against the library that others use, and what becomes of codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import vector_quantize_pytorch

from tivtok.model.config import TivTokConfig
from tivtok.model.quantizer import FSQ, SoftVQ, from_codes, nearest, to_codes
from tivtok.streaming import encode_to_file
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens, TokensError

LEVELS = (8, 5, 3, 4)
CONFIG = TivTokConfig.preset("tiny").replace(
    latent_dim=8, width=16, heads=1, encoder_layers=1, decoder_layers=1, quantizer="fsq", fsq_levels=LEVELS
)


@pytest.mark.parametrize("levels", [LEVELS, (8, 8, 8, 5, 5, 5), (3,)])
def test_fsq_is_the_librarys(levels: tuple[int, ...]) -> None:
    z = (3 * torch.randn(2, 50, 2 * len(levels), generator=torch.Generator().manual_seed(0))).requires_grad_()
    oracle = vector_quantize_pytorch.FSQ(levels=levels, num_codebooks=2)
    expected, codes = oracle(z)
    got = FSQ(levels)(z)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert torch.equal(to_codes(got, levels), codes.long())
    assert torch.equal(from_codes(codes.long(), levels), got.detach())
    weights = torch.randn_like(z)
    of_got, of_expected = (torch.autograd.grad((x * weights).sum(), z)[0] for x in (got, expected))
    torch.testing.assert_close(of_got, of_expected)


def test_every_code_has_its_own_values_and_comes_back() -> None:
    codes = torch.arange(8 * 5 * 3 * 4)[:, None]
    values = from_codes(codes, LEVELS)
    assert len(values.unique(dim=0)) == len(codes) and values.abs().max() <= 1
    assert torch.equal(to_codes(values, LEVELS), codes)
    assert torch.equal(to_codes(values.half(), LEVELS), codes)
    assert torch.equal(nearest(values + 0.1, LEVELS), values)
    with pytest.raises(ValueError, match=r"codes must be within 0\.\.479, got 0\.\.480"):
        from_codes(torch.tensor([[0, 480]]), LEVELS)


def test_softvqs_codebook_learns_through_the_product_alone() -> None:
    quantizer = SoftVQ(16, 4, 0.07)
    z = torch.randn(10, 4, requires_grad=True)
    weights, upstream = torch.rand(10, 16), torch.randn(10, 4)
    codes = torch.nn.functional.normalize(quantizer.codebook, dim=-1)
    scores = torch.nn.functional.normalize(z, dim=-1) @ codes.T / 0.07
    weights = torch.softmax(scores, dim=-1).detach()
    expected = torch.autograd.grad((weights @ codes * upstream).sum(), quantizer.codebook)[0]
    (quantizer(z) * upstream).sum().backward()
    torch.testing.assert_close(quantizer.codebook.grad, expected)
    assert z.grad is not None and z.grad.abs().max() > 0
    assert torch.autograd.grad(quantizer.entropy_penalty(z), quantizer.codebook, allow_unused=True) == (None,)


@torch.no_grad()
def test_a_model_of_codes_encodes_stores_and_decodes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TivTok(CONFIG).eval()
    model.encoder.to_latent.weight *= 30  # an untrained one says nothing
    frames = torch.randint(0, 256, (40, 24, 32, 3), dtype=torch.uint8)
    tokens = model.encode(frames.permute(3, 0, 1, 2)[None])
    tiv, tv = tokens.codes
    assert tokens.num_codes == model.config.num_codes == 480
    assert tiv.shape == (1, 1, 24, 2) and tv.shape == (1, 10, 4, 2) and len(tv.unique()) > 2
    assert torch.equal(nearest(tokens.tiv, LEVELS), tokens.tiv)  # though it is the mean of three chunks'

    encode_to_file(model, frames.split(16), tmp_path / "a.tivtok", dtype="float16")
    tokens.save(tmp_path / "b.tivtok")
    for name in ("a", "b"):
        stored = Tokens.load(tmp_path / f"{name}.tivtok")
        assert stored.levels == LEVELS and all(map(torch.equal, stored.codes, tokens.codes))
        assert torch.equal(stored.tv, tokens.tv)
    drawn = tokens.with_codes((tiv + 1) % 480, tv)
    assert torch.equal(drawn.codes[0], (tiv + 1) % 480) and torch.equal(drawn.tv, tokens.tv)
    assert torch.equal(model.decode(stored), model.decode(tokens)) and model.decode(drawn).isfinite().all()
    with pytest.raises(TokensError, match="codes must be within"):
        tokens.with_codes(tiv - 480, tv)


def test_gradients_reach_the_encoder_through_shared_sets() -> None:
    torch.manual_seed(0)
    model = TivTok(CONFIG)
    model(torch.rand(1, 3, 32, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())


def test_what_cannot_be_codes_says_so() -> None:
    with pytest.raises(ValueError, match="latent_dim 8 a multiple of their number"):
        CONFIG.replace(fsq_levels=(8, 8, 8))
    with pytest.raises(ValueError, match="fsq_levels must be 3 or more"):
        CONFIG.replace(fsq_levels=(2, 2))
    tokens = TivTok(CONFIG.replace(quantizer="none")).encode(torch.zeros(1, 3, 4, 16, 16))
    assert tokens.num_codes is None
    with pytest.raises(TokensError, match="are no codes"):
        _ = tokens.codes
