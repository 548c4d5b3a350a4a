"""Token counts and compression rates of the paper's tables."""

import pytest

from tivtok import TivTokConfig
from tivtok.cli.info import budget_rows


@pytest.mark.parametrize(
    ("preset", "frames", "tokens"),
    [
        ("t128", 16, 128),
        ("t128", 32, 160),
        ("t128", 128, 352),
        ("t512", 16, 512),
        ("t512", 32, 640),
        ("t512", 128, 1408),
        ("t1024", 16, 1024),
        ("t1024", 32, 1280),
        ("t1024", 128, 2816),
    ],
)
def test_token_counts_of_tables_1_and_2(preset, frames, tokens):
    assert TivTokConfig.preset(preset).num_tokens(frames) == tokens


@pytest.mark.parametrize(
    ("tiv_sets", "tokens", "percent"), [(8, 1024, 0.521), (4, 640, 0.326), (2, 448, 0.228), (1, 352, 0.179)]
)
def test_compression_rates_of_table_4(tiv_sets, tokens, percent):
    config = TivTokConfig.preset("t128")
    assert config.num_tokens(128, tiv_sets) == tokens
    assert round(100 * config.compression_rate(128, 256, 256, tiv_sets), 3) == percent


def test_headline_ratio():
    config = TivTokConfig.preset("t128")
    no_reuse, full_reuse = (config.compression_rate(128, 256, 256, sets) for sets in (8, 1))
    assert round(no_reuse / full_reuse, 2) == 2.91


@pytest.mark.parametrize(
    ("preset", "latent_dim", "frames", "percent"),
    [("t128", 128, 16, 0.521), ("t512", 32, 16, 0.521), ("t1024", 16, 16, 0.521), ("t128", 128, 32, 0.326)],
)
def test_rates_of_tables_1_and_2(preset, latent_dim, frames, percent):
    """All three have as many values; the second rows are 32 frames."""
    config = TivTokConfig.preset(preset)
    assert config.latent_dim == latent_dim
    assert round(100 * config.compression_rate(frames, 256, 256), 3) == percent


def test_table_5_at_the_ratio_of_the_presets():
    """3:1 is 96 + 256 tokens. 1:1 and 1:3 have 50 and 75 TV tokens in a chunk, which four frame groups cannot share:
    the configs t128-1-1 and t128-1-3 come near (tests/training/test_train_config.py)."""
    config = TivTokConfig.preset("t128")
    assert config.num_tokens(128) - config.num_tiv == 256
    assert config.num_tiv / (config.groups_per_chunk * config.num_tv) == 3


def test_what_info_says_of_a_preset():
    rows = budget_rows(TivTokConfig.preset("t128"), 128)
    table_4 = {"8 TIV sets": "1024", "4 TIV sets": "640", "2 TIV sets": "448", "1 TIV set": "352"}
    rates = ("0.521%", "0.326%", "0.228%", "0.179%")
    for (name, tokens), rate in zip(table_4.items(), rates, strict=True):
        assert rows[name].startswith(f"{tokens} tokens") and rate in rows[name]
    assert rows["saved by reuse"].startswith("2.91x = 1024 / 352:")
    assert rows["of a dense grid"].startswith("1.1% = 352 / 32768:")


def test_base_is_the_papers_transformer():
    config = TivTokConfig.preset("t128")
    assert (config.width, config.heads, config.head_dim) == (768, 12, 64)
    assert (config.encoder_layers, config.decoder_layers, config.patch, config.chunk_frames) == (12, 12, (4, 8, 8), 16)


def test_dict_round_trip():
    config = TivTokConfig.preset("t512", "small")
    assert TivTokConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TivTokConfig.preset("t256"), "preset must be one of"),
        (lambda: TivTokConfig.preset("t128", "huge"), "size must be one of"),
        (lambda: TivTokConfig(width=100, heads=12), "width / heads must be an even whole number"),
        (lambda: TivTokConfig(decoder="both"), "decoder must be"),
        (lambda: TivTokConfig(latent_positions="tv"), 'latent_positions must be "none" or "grid" or "tiv-grid", got'),
        (lambda: TivTokConfig(encoder_time="no"), 'encoder_time must be "rotary" or "none", got'),
        (lambda: TivTokConfig(rope_heads=13), "rope_heads must be between 1 and the 12 heads, got 13"),
        (lambda: TivTokConfig(num_tv=-1), "num_tv must be at least 0, and 1 where num_tiv is 0, got -1"),
        (lambda: TivTokConfig(num_tiv=0, num_tv=0), "num_tiv must be at least 0, and 1 where num_tv is 0, got 0"),
        (lambda: TivTokConfig.from_dict({"widht": 3}), "unknown config keys: widht"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
