"""Training runs: resumable to the bit, skipping what is not finite, measured on held-out files."""

from __future__ import annotations

import os
import signal
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from curves import assert_same_curve
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tivtok import TivTok
from tivtok.model.blocks import Block
from tivtok.model.quantizer import SoftVQ
from tivtok.training import TrainConfig, TrainingError, TrainingStopped, train
from tivtok.training.journal import read_log
from tivtok.training.losses import EntropyPenalty
from tivtok.training.trainer import Trainer


def files(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run."""
    return safetensors.torch.load_file(folder / "state.safetensors")


def curve(folder: Path) -> list[dict[str, float]]:
    return [{name: x for name, x in record.items() if name != "seconds"} for record in read_log(folder)]


@pytest.mark.parametrize("recipe", ["config", "full_config"])
def test_killed_and_resumed_is_the_same_run(
    recipe: str, request: pytest.FixtureRequest, tmp_path: Path, train_and_kill: Callable[[TrainConfig, int], None]
) -> None:
    config: TrainConfig = request.getfixturevalue(recipe)
    train(config)
    twice = replace(config, output=tmp_path / "twice")
    train_and_kill(twice, 4)
    train(twice)
    expected, got = files(config.output), files(twice.output)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert curve(twice.output) == curve(config.output)
    assert [record["step"] for record in curve(twice.output)] == [1, 2, 3, 4, 5, 6]


def test_sigterm_saves_and_the_same_run_goes_on(config: TrainConfig, tmp_path: Path, monkeypatch) -> None:
    train(config)
    twice = replace(config, output=tmp_path / "twice", save_every=100)
    step = Trainer.step

    def terminated(self: Trainer, video: torch.Tensor, number: int):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, video, number)

    with monkeypatch.context() as patched, pytest.raises(TrainingStopped, match="SIGTERM after step 4: the state is"):
        patched.setattr(Trainer, "step", terminated)
        train(twice)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(twice)
    expected, got = files(config.output), files(twice.output)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert curve(twice.output) == curve(config.output)


def test_the_loss_falls_and_the_checkpoint_loads(config: TrainConfig) -> None:
    config = replace(config, steps=40, log_every=10, evaluate_every=10, save_every=40, learning_rate=3e-3)
    config = replace(config, augmentation="flip")  # one task, so that so few steps show
    checkpoint = train(config)
    log = read_log(config.output)
    assert [record["step"] for record in log] == [10, 20, 30, 40]
    assert log[-1]["reconstruction"] < 0.8 * log[0]["reconstruction"]
    assert log[-1]["held_out_psnr"] > log[0]["held_out_psnr"]
    assert TivTok.from_pretrained(checkpoint).config == config.model


def test_bad_steps_change_nothing_and_too_many_end_the_run(config: TrainConfig, monkeypatch) -> None:
    step, seen = Trainer.step, []

    def poisoned(self: Trainer, video: torch.Tensor, number: int):
        before = {name: x.clone() for name, x in self.model.state_dict().items()}
        result = step(self, video * float("nan") if number in (1, 3, 4) else video, number)
        unchanged = all(torch.equal(x, before[name]) for name, x in self.model.state_dict().items())
        seen.append((result is None, unchanged))
        return result

    monkeypatch.setattr(Trainer, "step", poisoned)
    train(replace(config, max_bad_steps=3))
    assert seen == [(bad, bad) for bad in (False, True, False, True, True, False)]
    assert read_log(config.output)[-1]["bad_steps"] == 3
    with pytest.raises(TrainingError, match="not finite 2 steps in a row, up to step 5"):
        train(replace(config, output=config.output / "again", max_bad_steps=2))


def test_the_whole_recipe_runs_and_logs_every_term(full_config: TrainConfig) -> None:
    train(full_config)
    early, late = read_log(full_config.output)[0], read_log(full_config.output)[-1]
    always = {"step", "reconstruction", "perceptual", "entropy", "gradient_norm", "bad_steps", "seconds"}
    assert early.keys() == always
    assert late.keys() == always | {"adversarial", "adaptive_weight", "logits_real", "logits_fake", "discriminator"} | {
        "lecam",
        "consistency",
        "discriminator_gradient_norm",
        "held_out_psnr",
    }
    assert early["perceptual"] == 0 < late["perceptual"]  # its weight rises from 0
    assert late["bad_steps"] == 0 and 0 < late["adaptive_weight"] < 1e4


def test_the_entropy_penalty_is_of_the_last_steps_tokens_and_reaches_the_encoder_alone(
    full_config: TrainConfig,
) -> None:
    torch.manual_seed(0)
    model = TivTok(full_config.model)
    assert isinstance(model.quantizer, SoftVQ)
    penalty = EntropyPenalty(model.quantizer)
    video = torch.rand(2, 3, 4, 32, 32) * 2 - 1
    model.eval()(video)
    model.train()(-video)
    got = penalty.take()
    tokens = torch.cat([x.flatten(0, -2) for x in model.encoder(-video)])
    torch.testing.assert_close(got, model.quantizer.entropy_penalty(tokens))
    got.backward()
    gradient = model.encoder.to_latent.weight.grad
    assert gradient is not None and gradient.abs().max() > 0 and model.quantizer.codebook.grad is None


def test_the_entropy_penalty_changes_the_run(full_config: TrainConfig) -> None:
    config = replace(full_config, steps=2, adversarial=None)
    for run in (config, replace(config, output=config.output / "without", entropy=0.0)):
        train(run)
    with_it, without = (read_log(folder) for folder in (config.output, config.output / "without"))
    assert with_it[0]["reconstruction"] == without[0]["reconstruction"]
    assert with_it[1]["reconstruction"] != without[1]["reconstruction"]
    assert "entropy" not in without[0]


def test_the_long_video_stage_begins_with_the_first_ones_weights(full_config: TrainConfig, tmp_path: Path) -> None:
    first = replace(full_config, steps=3, chunks=1, feature_frames=3)
    train(first)
    second = replace(full_config, output=tmp_path / "long", start_from=first.output, steps=1, learning_rate=0.0)
    with pytest.raises(ValueError, match="start_from must be the output of a run or a checkpoint: there is no "):
        train(replace(second, start_from=tmp_path / "nowhere"))
    second = replace(second, adversarial=replace(second.adversarial, start=1))
    train(second)
    before, after = files(first.output), files(second.output)
    for name, x in after.items():
        kept, _, rest = name.partition(".")
        if kept in ("model", "average"):
            assert torch.equal(x, before[f"average.{rest}"])
        if kept in ("discriminator", "lecam"):
            assert torch.equal(x, before[name])


@pytest.mark.parametrize("form", ["run without its state", "folder", "file"])
def test_a_run_begins_with_the_weights_of_any_checkpoint(config: TrainConfig, tmp_path: Path, form: str) -> None:
    first = tmp_path / "first"
    torch.manual_seed(7)
    expected = TivTok(config.model)
    folder = first / "checkpoint" if form == "run without its state" else first
    expected.save_pretrained(folder)
    start_from = folder / "model.safetensors" if form == "file" else first
    # A second stage may also train with other positions: they are no weights, or zero in a new model.
    model = config.model.replace(encoder_time="none", patch_positions="learned")
    train(replace(config, model=model, start_from=start_from, steps=1, learning_rate=0.0, muon_learning_rate=0.0))
    after = TivTok.from_pretrained(config.output / "checkpoint")
    assert all(torch.equal(x, after.state_dict()[name]) for name, x in expected.state_dict().items())
    assert after.encoder.places is not None and not after.encoder.places.table.any()
    with pytest.raises(ValueError, match="the state is of a different model"):
        wider = replace(config, output=tmp_path / "wider", model=config.model.replace(num_tv=3), start_from=first)
        train(wider)


ForwardCalls = list[tuple[torch.Tensor, dict[str, Any]]]


@pytest.fixture
def training_calls(monkeypatch: pytest.MonkeyPatch) -> ForwardCalls:
    """The video and the options of every forward pass in training, as they come."""
    seen: ForwardCalls = []
    forward = TivTok.forward

    def watched(self: TivTok, video: torch.Tensor, **options: Any) -> torch.Tensor:
        if self.training:
            seen.append((video, options))
        return forward(self, video, **options)

    monkeypatch.setattr(TivTok, "forward", watched)
    return seen


def test_siblings_are_drawn_by_step(config: TrainConfig, training_calls: ForwardCalls) -> None:
    config = replace(config, model=config.model.replace(groups_per_chunk=1), chunks=(2, 3), steps=40, siblings=0.3)
    train(replace(config, evaluate_every=40, save_every=40))
    assert all(options["without_tv"] is options["budget"] is None for _, options in training_calls)
    assert len(training_calls) == 40 and 5 < sum(options["siblings"] for _, options in training_calls) < 20


def test_clips_without_tv_tokens_are_drawn_one_by_one(config: TrainConfig, training_calls: ForwardCalls) -> None:
    config = replace(config, batch_size=4, accumulate=2, steps=10, without_tv=0.3)
    train(replace(config, evaluate_every=10, save_every=10))
    assert all(options["without_tv"].shape == video.shape[:1] for video, options in training_calls)
    drawn = torch.cat([options["without_tv"] for _, options in training_calls])
    assert len(drawn) == 40 and 5 < drawn.sum() < 20


def test_any_number_of_nested_tokens_is_decoded(config: TrainConfig, training_calls: ForwardCalls) -> None:
    config = replace(config, model=config.model.replace(nested=True), steps=80, nested=0.8)
    train(replace(config, evaluate_every=80, save_every=80))
    drawn = [options["budget"] for _, options in training_calls if options["budget"] is not None]
    assert 50 < len(drawn) < 75
    assert {tiv for tiv, _ in drawn} == {1, 2, 3, 4} and {tv for _, tv in drawn} == {1, 2}
    for change in ({"nested": 0.0}, {"model": config.model.replace(nested=False)}):
        with pytest.raises(ValueError, match="nested must be above 0 for models with nested tokens"):
            replace(config, **change)


def test_noise_is_that_of_quantised_tokens(config: TrainConfig, training_calls: ForwardCalls) -> None:
    """Uniform within half a step, like what rounding to whole steps changes; other numbers for each clip and step."""
    config = replace(config, steps=4, batch_size=4, accumulate=2, quantization_noise=0.3)
    train(replace(config, evaluate_every=4, save_every=4))
    drawn = [options["noise"] for _, options in training_calls]
    assert len(drawn) == 8
    for tiv, tv in drawn:
        model = config.model
        assert tiv.shape == (2, 1, model.num_tiv, model.latent_dim) and tv.shape[::2] == (2, model.num_tv)
    every = torch.cat([x.flatten() for pair in drawn for x in pair])
    assert every.abs().max() <= 0.15 and len(every.unique()) > 0.99 * len(every)
    rounded = torch.randn(10_000) * 5
    rounded -= (rounded / 0.3).round() * 0.3
    with pytest.raises(ValueError, match="quantization_noise is for tokens that are free values"):
        replace(config, model=model.replace(quantizer="fsq", fsq_levels=(8, 8)))
    assert every.var() == pytest.approx(float(rounded.var()), rel=0.1) and abs(every.mean()) < 0.01


def test_clips_of_several_chunks_share_the_mean_of_their_tiv_tokens(full_config: TrainConfig) -> None:
    """Algorithm 1: what is trained on is what `encode` and `decode` do with one TIV set."""
    torch.manual_seed(0)
    model = TivTok(full_config.model)
    video = torch.rand(2, 3, full_config.clip_frames, 32, 32) * 2 - 1
    tokens = model.encode(video, tiv_sets=1)
    assert tokens.tiv.shape[1] == 1 and full_config.clip_frames == 2 * full_config.model.chunk_frames
    torch.testing.assert_close(model(video), model.decode(tokens))


@pytest.mark.filterwarnings("error:.*lru_cache")
@pytest.mark.parametrize(
    "change", [{"activation_checkpointing": True}, {"compile": True}, {"accumulate": 2}], ids=lambda c: next(iter(c))
)
def test_memory_and_speed_options_do_not_change_the_curve(
    full_config: TrainConfig, change: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing is what can break here, and it is the same without Inductor and its C++ compiler.
    monkeypatch.setattr(TivTok, "compile", partialmethod(TivTok.compile, backend="aot_eager", fullgraph=True))
    config = replace(full_config, steps=3, evaluate_every=3, save_every=3)
    if "accumulate" in change:  # these two are each part's own then
        config = replace(config, adversarial=None, entropy=0.0)
    train(config)
    train(replace(config, output=config.output / "other", **change))
    assert_same_curve(curve(config.output), curve(config.output / "other"), rel=1e-3)


class OperatorCalls(TorchDispatchMode):
    """Counts how often each operator is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[OpOverload] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[operator] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", [False, True])
def test_activation_checkpointing_keeps_the_attention_alone(config: TrainConfig, recompute: bool) -> None:
    """Hidden layers of the MLPs are gone after the forward pass and come again in the backward one; attention stays."""
    model, hidden = TivTok(config.model), []
    for block in (module for module in model.modules() if isinstance(module, Block)):
        block.recompute = recompute
        block.mlp[0].register_forward_hook(lambda *found: hidden.append(weakref.ref(found[2])))
    with OperatorCalls() as found:
        out = model(torch.rand(1, 3, 8, 16, 16) * 2 - 1)
        calls = len(hidden)
        assert calls >= 3 and any(layer() is not None for layer in hidden) is not recompute
        out.square().sum().backward()
    assert found.counts[torch.ops.tivtok.sif_attention.default] == calls
    assert found.counts[torch.ops.aten.gelu.default] == (2 * calls if recompute else calls)


def test_bfloat16_stays_near_float32(full_config: TrainConfig) -> None:
    config = replace(full_config, steps=3, evaluate_every=3, save_every=3)
    train(config)
    train(replace(config, output=config.output / "other", precision="bfloat16"))
    for expected, got in zip(curve(config.output), curve(config.output / "other"), strict=True):
        assert got["reconstruction"] == pytest.approx(expected["reconstruction"], rel=0.02)
    assert curve(config.output) != curve(config.output / "other")
    assert files(config.output / "other")["model.decoder.patch_query"].dtype == torch.float32


def test_tensorboard_has_scalars_and_pictures(config: TrainConfig) -> None:
    train(replace(config, steps=2, evaluate_every=2))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(config.output / "tensorboard" / config.output.name))
    events.Reload()
    assert [event.step for event in events.Scalars("reconstruction")] == [1, 2]
    (picture,) = events.Images("held_out")
    assert (picture.step, picture.width, picture.height) == (2, 4 * 16, 2 * 16)
