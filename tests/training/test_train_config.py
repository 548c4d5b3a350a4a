"""The configuration: strict keys, clear mistakes, bundled files that load."""

from __future__ import annotations

from importlib.resources import files

import pytest

from tivtok import TivTokConfig
from tivtok.training import TrainConfig

TOML = """
output = "runs/x"
data = "clips"
steps = 5
held_out = ["test*"]

[model]
preset = "tiny"
num_tiv = 12
"""


def test_config_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    config = TrainConfig.load(path)
    assert config.model == TivTokConfig.preset("tiny").replace(num_tiv=12)
    assert config.held_out == ("test*",) and config.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 5", "step = 5", "unknown keys: step"),
        ("steps = 5", "", "missing keys: steps"),
        ("steps = 5", "steps = 0", "steps must be at least 1, got 0"),
        ("num_tiv", "num_tivs", "unknown config keys: num_tivs"),
        ('preset = "tiny"', 'preset = "huge"', "preset must be one of"),
        ("steps = 5", "steps = ", "run.toml: "),
        ("steps = 5", "steps = 5\ncamera = 1.5", "camera must be between 0 and 1, got 1.5"),
        ("steps = 5", 'steps = 5\naugmentation = "flip"\ncamera = 0.5', 'camera must be 0 with augmentation "flip"'),
        ("steps = 5", "steps = 5\nquantization_noise = -0.1", "quantization_noise must be a finite width from 0 up"),
        ("steps = 5", "steps = 5\nentropy = 0.01", "entropy is for model.quantizer \"softvq\", got 0.01 with 'none'"),
    ],
)
def test_mistakes_in_a_config_file_are_named(tmp_path, old, new, message):
    path = tmp_path / "run.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        TrainConfig.load(path)


def test_a_file_may_extend_another(tmp_path):
    (tmp_path / "base.toml").write_text(TOML)
    (tmp_path / "run.toml").write_text(
        'extends = "base.toml"\nsteps = 7\nmix = [["a", 1], ["b", 2.5]]\n[model]\nnum_tv = 3'
    )
    config = TrainConfig.load(tmp_path / "run.toml")
    assert (config.steps, config.held_out, config.mix) == (7, ("test*",), (("a", 1), ("b", 2.5)))
    assert config.model == TivTokConfig.preset("tiny").replace(num_tiv=12, num_tv=3)
    for text, message in (
        ('extends = "run.toml"', "run.toml extends itself"),
        ('extends = "none.toml"', "extends must name a file beside run.toml, got 'none.toml'"),
        ("extends = 3", "extends must name a file beside run.toml, got 3"),
    ):
        (tmp_path / "run.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            TrainConfig.load(tmp_path / "run.toml")


# N_TIV, N_TV, D, and tokens of 128 frames through one TIV set (Tables 1, 2, 4 and 5), which the ratios only come near.
ROWS = {
    "t128": (96, 8, 128, 352),
    "t512": (384, 32, 32, 1408),
    "t1024": (768, 64, 16, 2816),
    "t128-1-1": (50, 12, 128, 450),
    "t128-1-3": (25, 19, 128, 625),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_tables_has_a_config_and_a_long_video_stage(name):
    num_tiv, num_tv, latent_dim, tokens = ROWS[name]
    folder = files("tivtok.training").joinpath("configs")
    first, second = (TrainConfig.load(str(folder.joinpath(f"{file}.toml"))) for file in (name, f"{name}-long"))
    assert first.model == second.model
    assert (first.model.num_tiv, first.model.num_tv, first.model.latent_dim) == (num_tiv, num_tv, latent_dim)
    assert first.model.num_tokens(128) == pytest.approx(tokens, rel=0 if name.count("-") == 0 else 0.04)
    assert (first.steps, first.batch_size, first.warmup_steps, first.adversarial.start) == (100_000, 64, 5_000, 30_000)
    assert (second.steps, second.chunks, second.adversarial.start) == (50_000, 8, 0)
    assert str(second.start_from) == str(first.output) == f"runs/{name}" and second.output != first.output


def test_bundled_configs_load():
    configs = [p for p in files("tivtok.training").joinpath("configs").iterdir() if p.name.endswith(".toml")]
    assert configs
    for path in configs:
        TrainConfig.load(str(path))
