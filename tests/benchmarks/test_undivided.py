"""The undivided baseline: as many tokens and steps as the divided model's, and measured beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.dumps import read_json
from benchmarks.studies.__main__ import app
from benchmarks.studies.undivided import build_undivided, load_undivided, undivided_run
from tivtok import TivTok, TivTokConfig
from tivtok.training.config import TrainConfig
from tivtok.video import VideoWriter

MODEL = """
preset = "tiny"
num_tiv = 4
num_tv = 2
latent_dim = 8
width = 24
heads = 2
encoder_layers = 1
decoder_layers = 1
native_size = [32, 32]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("a__f0000", "b__f0000", "c__f0000"):
        with VideoWriter(tmp_path / "clips" / f"{name}.mp4", fps=10, width=40, height=36) as writer:
            for t in range(40):
                plane = (np.arange(40) * 5 + np.arange(36)[:, None] * 3 + t * 11) % 256
                writer.write(np.stack([plane, 255 - plane, plane // 2], axis=-1).astype(np.uint8))
    path = tmp_path / "small.toml"
    path.write_text(
        f'output = "{tmp_path}/divided"\ndata = "{tmp_path}/clips"\nsteps = 2\nbatch_size = 4\nchunks = [1, 2]\n'
        f'without_tv = 0.1\nworkers = 0\nheld_out = ["c__*"]\n[model]{MODEL}'
    )
    return path


def test_the_baseline_sees_as_many_chunks_and_has_as_many_tokens() -> None:
    divided = TrainConfig.load(Path("tivtok/training/configs/tiny.toml"))
    whole = undivided_run(divided)
    assert whole.model.num_tokens(16) == divided.model.num_tokens(16) == 40
    assert (whole.steps, whole.clip_frames, whole.batch_size) == (8500, 16, 8)
    assert whole.model.latent_dim == divided.model.latent_dim and whole.model.width == divided.model.width


def test_it_is_trained_and_measured_by_commands(recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "undivided"
    CliRunner().invoke(app, ["train-undivided", str(recipe), "--output", str(runs)], catch_exceptions=False)
    baseline = load_undivided(runs / "checkpoint")
    video = torch.rand(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        tokens = baseline.encode(video, tiv_sets=2)
        far = torch.cat([video[:, :, :12], -video[:, :, 12:16], video[:, :, 16:]], dim=2)
        decoded, changed = baseline.decode(tokens), baseline.decode(baseline.encode(far, tiv_sets=2))
    assert tokens.tiv.shape == (1, 2, 12, 8) and tokens.tv.shape == (1, 8, 0, 8)
    # What changes in a chunk's last frame group reaches its first one, and no other chunk.
    assert not torch.equal(changed[:, :, :4], decoded[:, :, :4]) and torch.equal(changed[:, :, 16:], decoded[:, :, 16:])

    torch.manual_seed(0)
    config = TrainConfig.load(recipe).model
    TivTok(config).save_pretrained(tmp_path / "model")
    command = ["undivided", "--data", str(tmp_path / "clips"), "--model", str(tmp_path / "model"), "--note", "Planes."]
    command += ["--results", str(tmp_path), "--baseline"]
    CliRunner().invoke(app, [*command, str(runs / "checkpoint")], catch_exceptions=False)
    measured = read_json(tmp_path / "undivided.json.gz")["measured"]
    assert set(measured["a__f0000.mp4"]) == {"source", "bucket", "16", "32"}
    text = (tmp_path / "undivided.md").read_text()
    assert "Planes." in text and "| undivided | 0.75 |" in text
    assert "| TivTok, one TIV set | 0.62 |" in text and "| TivTok, a TIV set per chunk | 0.75 |" in text
    assert (tmp_path / "undivided.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="baseline must be a model without TV tokens, got"):
        CliRunner().invoke(app, [*command, str(tmp_path / "model")], catch_exceptions=False)


def test_both_models_begin_with_the_same_weights_where_they_have_the_same() -> None:
    """Otherwise the comparison would be of initialisations."""
    config = TivTokConfig.preset("tiny").replace(num_tiv=40, num_tv=0)
    torch.manual_seed(0)
    plain = TivTok(config).state_dict()
    torch.manual_seed(0)
    for name, x in build_undivided(config).state_dict().items():
        assert torch.equal(x, plain[name]), name
