"""Training: resumable to the bit, measured on held-out files, strict about its configuration."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from tivtok import TivTok, TivTokConfig
from tivtok.training import TrainConfig, train
from tivtok.training.baseline import best_resampling
from tivtok.training.data import ClipSampler, load_videos, split_files
from tivtok.training.loop import TrainingError
from tivtok.training.optim import Muon, orthogonalize, schedule


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_interrupted_and_resumed_is_the_same_run(config, tmp_path, monkeypatch):
    whole = train(config)

    from tivtok.training import loop

    step = loop._Run.step

    def interrupted(self, forward, video, number):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, forward, video, number)

    twice = replace(config, output=tmp_path / "twice")
    monkeypatch.setattr(loop._Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(twice)
    monkeypatch.setattr(loop._Run, "step", step)
    resumed = train(twice)
    expected, got = weights(whole), weights(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_log_reports_a_falling_loss_and_the_checkpoint_loads(config):
    checkpoint = train(replace(config, steps=40, evaluate_every=10, save_every=40, learning_rate=3e-3))
    log = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [10, 20, 30, 40]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["held_out_psnr"] > log[0]["held_out_psnr"]
    assert TivTok.from_pretrained(checkpoint).config == config.model


def test_a_loss_that_is_not_finite_stops_the_run(config):
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        train(replace(config, learning_rate=float("inf")))


def test_held_out_files_are_never_sampled(config):
    training, held_out = split_files(config)
    assert [p.name for p in training] == ["a.mp4", "b.mp4"] and [p.name for p in held_out] == ["test.mp4"]
    with pytest.raises(ValueError, match=r"3 videos, 0 of them match held_out = \['x'\]"):
        split_files(replace(config, held_out=("x",)))


def test_batches_depend_on_seed_and_step_alone(config):
    training, _ = split_files(config)
    videos = load_videos(training, config.short_sides, config.model.native_size)
    first, second = ClipSampler(videos, config), ClipSampler(videos, config)
    assert first.batch(3).shape == (2, 3, 8, 16, 16)
    first.batch(0)
    assert torch.equal(first.batch(7), second.batch(7))
    assert not torch.equal(first.batch(7), first.batch(8))
    assert first.batch(1).abs().max() <= 1


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 4, 12), (1, 12, 4)])
def test_orthogonalize_flattens_the_spectrum(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5 and values.max() < 1.3
    assert torch.linalg.svdvals(matrices).max() / torch.linalg.svdvals(matrices).min() > 1.5


def test_muon_treats_a_fused_qkv_projection_as_three_matrices():
    torch.manual_seed(0)
    fused = torch.nn.Parameter(torch.zeros(24, 8))
    fused.grad = torch.randn(24, 8)
    parts = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    for part, grad in zip(parts, fused.grad.chunk(3), strict=True):
        part.grad = grad.clone()
    Muon([fused], lr=0.1, weight_decay=0.0).step()
    Muon(parts, lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in parts]))


def test_schedule(config):
    config = replace(config, steps=100, warmup_steps=10)
    assert schedule(0, config) == 0.1 and schedule(9, config) == 1.0
    assert schedule(55, config) == pytest.approx(0.5)
    assert schedule(100, config) == pytest.approx(0.0)


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
    ],
)
def test_mistakes_in_a_config_file_are_named(tmp_path, old, new, message):
    path = tmp_path / "run.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        TrainConfig.load(path)


def test_bundled_configs_load():
    from importlib.resources import files

    configs = [p for p in files("tivtok.training").joinpath("configs").iterdir() if p.name.endswith(".toml")]
    assert configs
    for path in configs:
        TrainConfig.load(str(path))


def test_resampling_keeps_what_is_smooth_and_finds_the_better_grid():
    still = torch.nn.functional.interpolate(torch.randn(1, 3, 1, 4, 4), size=(8, 16, 16), mode="trilinear")
    size, reconstruction = best_resampling(still, num_values=3 * 8 * 8)
    assert size == (1, 8, 8)
    assert (reconstruction - still).square().mean() < 0.1 * still.var()
    with pytest.raises(ValueError, match="num_values"):
        best_resampling(still, num_values=2)
