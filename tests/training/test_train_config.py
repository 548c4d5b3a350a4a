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
        ("steps = 5", "steps = 5\nentropy = 0.01", "entropy is for model.quantizer \"softvq\", got 0.01 with 'none'"),
    ],
)
def test_mistakes_in_a_config_file_are_named(tmp_path, old, new, message):
    path = tmp_path / "run.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        TrainConfig.load(path)


def test_bundled_configs_load():
    configs = [p for p in files("tivtok.training").joinpath("configs").iterdir() if p.name.endswith(".toml")]
    assert configs
    for path in configs:
        TrainConfig.load(str(path))
