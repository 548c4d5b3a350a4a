"""Token counts and compression rates of the paper's tables."""

import pytest

from tivtok import TivTokConfig


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
        (lambda: TivTokConfig(num_tv=0), "num_tv must be at least 1"),
        (lambda: TivTokConfig.from_dict({"widht": 3}), "unknown config keys: widht"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
