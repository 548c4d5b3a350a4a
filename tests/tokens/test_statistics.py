"""Token statistics, for generators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tivtok.checkpoints import CheckpointError
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens, TokensError
from tivtok.tokens.statistics import LatentStats

CONFIG = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)


def make(seed: int, sets: int = 40, groups: int = 200) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(99))
    return Tokens(
        tiv=torch.randn(1, sets, 6, 8, generator=generator) * scale + shift,
        tv=torch.randn(1, groups, 3, 8, generator=generator) * 3 - 7,
        tiv_index=torch.arange(groups) * sets // groups,
        num_frames=4 * groups,
        height=16,
        width=16,
        fps=None,
        preset="x",
        model_id="m",
    )


def stats_of(tokens: Tokens) -> LatentStats:
    return LatentStats.of([(tokens.tiv, tokens.tv)], tokens.model_id)


def test_stats_are_those_of_each_token_and_channel() -> None:
    a, b = make(0), make(1, sets=7, groups=30)
    stats = LatentStats.of(((t.tiv, t.tv) for t in (a, b)), "m")
    for name in ("tiv", "tv"):
        both = torch.cat([getattr(a, name)[0], getattr(b, name)[0]])
        torch.testing.assert_close(getattr(stats, f"{name}_mean"), both.mean(0))
        torch.testing.assert_close(getattr(stats, f"{name}_std"), both.std(0, correction=0))


def test_normalized_tokens_are_around_zero_and_one_and_come_back() -> None:
    tokens = make(0)
    stats = stats_of(tokens)
    normal = tokens.normalize(stats)
    for x in (normal.tiv, normal.tv):
        torch.testing.assert_close(x.mean((0, 1)), torch.zeros(x.shape[2:]), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std((0, 1), correction=0), torch.ones(x.shape[2:]), atol=1e-5, rtol=0)
    back = normal.denormalize(stats)
    torch.testing.assert_close(back.tiv, tokens.tiv)
    torch.testing.assert_close(back.tv, tokens.tv)
    assert back.model_id == tokens.model_id


def test_constant_tokens_stay_finite() -> None:
    tokens = replace(make(0), tv=torch.full((1, 200, 3, 8), 5.0))
    assert tokens.normalize(stats_of(tokens)).tv.abs().max() < 1e-3


def test_normalized_and_plain_tokens_are_not_mixed_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TivTok(CONFIG).eval()
    with torch.no_grad():
        tokens = model.encode(torch.rand(1, 3, 20, 16, 16))
    stats = stats_of(tokens)
    normal = tokens.normalize(stats)
    normal.save(tmp_path / "a.tivtok")
    assert Tokens.load(tmp_path / "a.tivtok").model_id == normal.model_id
    for wrong in (lambda: model.decode(normal), lambda: normal.normalize(stats), lambda: tokens.denormalize(stats)):
        with pytest.raises(TokensError, match="model"):
            wrong()
    with pytest.raises(TokensError, match="model"):
        make(0).normalize(stats)


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="got none"):
        LatentStats.of([], "m")


def test_they_lie_beside_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    TivTok(CONFIG).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no latents\.safetensors"):
        LatentStats.from_pretrained(tmp_path)
    stats = stats_of(make(0))
    stats.save(tmp_path)
    again = LatentStats.from_pretrained(tmp_path)
    assert again.model_id == stats.model_id and torch.equal(again.tv_std, stats.tv_std)
    (tmp_path / "latents.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="cannot be read"):
        LatentStats.from_pretrained(tmp_path)
