"""The ablated models leave out what they say and nothing else; the command resumes; the report tells signs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.dumps import read_json
from benchmarks.studies import synthetic_motion
from benchmarks.studies.__main__ import app
from benchmarks.studies.ablation_variants import DenseEncoder, JointDecoder
from benchmarks.studies.synthetic_motion import (
    ABLATIONS,
    MOTION,
    OTHERS,
    Trial,
    World,
    baselines,
    moving_discs,
    psnr,
    train,
)
from benchmarks.studies.synthetic_motion_report import Score, difference, scored, verdict
from tivtok import TivTok


def randomised(trial: Trial) -> TivTok:
    """In float64, away from the initialisation."""
    torch.manual_seed(0)
    model = trial.build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def video(frames: int) -> torch.Tensor:
    return torch.rand(1, 3, frames, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def test_ablated_models_begin_with_the_same_weights() -> None:
    weights = []
    for trial in ABLATIONS.values():
        torch.manual_seed(0)
        weights.append(trial.build().state_dict())
    for its in weights[1:]:
        assert all(torch.equal(its[name], value) for name, value in weights[0].items()) and len(its) == len(weights[0])
    assert OTHERS["undivided, 40"].build().config.num_tokens(16) == OTHERS["24+4"].build().config.num_tokens(16)


@torch.no_grad()
def test_only_the_dense_encoder_lets_tv_tokens_see_other_frames() -> None:
    """In one layer: from the second on, what the TIV tokens saw of other frames reaches TV tokens in both."""
    for encoder in ("SIF", "dense"):
        model = randomised(ABLATIONS[f"grid, {encoder}, IB"])
        del model.encoder.blocks[1:]
        changed = video(16)
        changed[:, :, 12:] *= -1  # the last frame group
        _, tv = model.encoder(video(16))
        _, tv_changed = model.encoder(changed)
        assert torch.equal(tv[:, :3], tv_changed[:, :3]) is (encoder == "SIF")
        assert isinstance(model.encoder, DenseEncoder) is (encoder == "dense")


@pytest.mark.parametrize("decoder", ["IB", "joint"])
@torch.no_grad()
def test_dense_tv_tokens_without_places_are_the_same_in_every_group(decoder: str) -> None:
    """They see the same things in the same way, whatever the video; places in time, or scopes, tell them apart."""
    change = {}
    for name in (f"none, dense, {decoder}", f"none, SIF, {decoder}", f"grid, dense, {decoder}"):
        _, tv = randomised(ABLATIONS[name]).encoder(video(16))
        change[name] = float((tv - tv.mean(1, keepdim=True)).abs().max())
    same, *others = change.values()
    assert same < 1e-12 and min(others) > 1e-4, change


@torch.no_grad()
def test_only_the_joint_decoder_lets_frames_see_one_another() -> None:
    for decoder in ("IB", "joint"):
        model = randomised(ABLATIONS[f"grid, SIF, {decoder}"])
        tiv, tv = model.encode_chunks(video(32))
        changed = tv.clone()
        changed[:, 3] *= -1  # the last group of the first chunk
        prepared = model.prepare(tiv.mean(1, keepdim=True))
        a, b = (model.decode_groups(prepared, x, [8], 16, 16).unflatten(2, (8, 4)) for x in (tv, changed))
        differs = [not torch.allclose(a[:, :, t], b[:, :, t], atol=1e-9) for t in range(8)]
        assert differs == [decoder == "joint"] * 3 + [True] + [False] * 4, decoder
        assert isinstance(model.decoder, JointDecoder) is (decoder == "joint")


@pytest.mark.parametrize("world", [World(), MOTION])
def test_clips_show_a_background_that_stays_and_discs_that_move(world: World) -> None:
    clips = moving_discs(np.random.default_rng(0), 8, 64, world)
    assert clips.shape == (8, 3, 64, 32, 32) and clips.abs().max() <= 1
    assert torch.equal(clips[:, :, :16], moving_discs(np.random.default_rng(0), 8, 16, world))
    steps = (clips[:, :, 1:] - clips[:, :, :-1]).abs().amax((1, 2, 3, 4))
    assert ((steps > 0.1) & (steps < 2)).all()  # something moves in every clip, and nothing jumps
    empty = moving_discs(np.random.default_rng(0), 8, 16, World(discs=0, background=world.background))
    assert (empty - empty[:, :, :1]).abs().max() == 0
    at_rest = (clips[:, :, :16] - empty).abs().amax((1, 2))  # (clips, 32, 32): 0 where no disc passes
    assert 0.02 < float((at_rest == 0).float().mean()) < 0.9


def test_discs_are_as_fast_and_as_strong_as_the_world_says() -> None:
    """Of one small disc on grey, by its centre of mass while it is away from the borders."""
    world = World(discs=1, radius=(3, 3), speed=(0.5, 1.0), colour=(0.6, 0.8), background=1)
    clips = moving_discs(np.random.default_rng(0), 64, 16, world)
    clips = clips - clips.flatten(3).median(3).values[..., None, None]  # the background is one colour
    weight = clips.abs().sum(1)
    x = (weight * torch.arange(32)).sum((2, 3)) / weight.sum((2, 3))
    inside = ((x > 5) & (x < 26)).all(1)
    speed = (x[inside, 1:] - x[inside, :-1]).abs()
    assert len(speed) > 4 and float(speed.mean(1).min()) > 0.45 and float(speed.mean(1).max()) < 1.05


def test_baselines_have_more_with_more_numbers() -> None:
    found = baselines(moving_discs(np.random.default_rng(0), 2, 128, MOTION))
    assert list(found) == ["16", "32", "64", "128"]
    assert found["16"]["DCT, one set"] == found["16"]["DCT, own sets"]
    assert all(its["DCT, own sets"] > its["DCT, one set"] > its["still picture"] for _, its in list(found.items())[1:])


def test_the_command_writes_tables_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_motion, "CLIPS", 2)
    monkeypatch.setattr(synthetic_motion, "LENGTHS", (16, 32, 64))
    kept = ("grid, SIF, IB", "grid, dense, IB", "undivided, 40")
    for name, trials in (("ABLATIONS", ABLATIONS), ("OTHERS", OTHERS)):
        monkeypatch.setattr(synthetic_motion, name, {n: t for n, t in trials.items() if n in kept})
    command = ["synthetic-motion", "--results", str(tmp_path), "--steps", "2"]
    CliRunner().invoke(app, [*command, "--seeds", "1", "--only", "grid, SIF, IB"], catch_exceptions=False)
    first = read_json(tmp_path / "synthetic-motion.json.gz")["measured"]
    assert list(first) == ["baselines", "grid, SIF, IB/0"]
    assert "64, one set" in first["grid, SIF, IB/0"]["long"] and "64, one set" not in first["grid, SIF, IB/0"]["single"]
    text = (tmp_path / "synthetic-motion.md").read_text()
    assert "| grid, SIF, IB | 1 |" in text and "no SIF |" not in text and "nan" not in text

    CliRunner().invoke(app, [*command, "--seeds", "2"], catch_exceptions=False)
    both = read_json(tmp_path / "synthetic-motion.json.gz")["measured"]
    assert len(both) == 1 + 2 * 3 and both["grid, SIF, IB/0"] == first["grid, SIF, IB/0"]
    assert list(both)[1:5] == ["grid, SIF, IB/0", "grid, dense, IB/0", "grid, SIF, IB/1", "grid, dense, IB/1"]
    assert "64, own sets" in both["undivided, 40/0"]["single"] and "long" not in both["undivided, 40/0"]
    text = (tmp_path / "synthetic-motion.md").read_text()
    assert "| grid, dense, IB | 2 |" in text and "| grid | no SIF |" in text and "| undivided |" in text
    assert (tmp_path / "synthetic-motion.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"json.gz was measured with other settings \(steps\): move it away"):
        CliRunner().invoke(app, [*command[:-1], "3"], catch_exceptions=False)


def test_seeds_and_siblings_decide_what_is_learned() -> None:
    def learned(seed: int, siblings: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = OTHERS["24+4"].build()
        train(model, 1, 4, np.random.default_rng(seed), (2,), siblings)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = learned(0, 0.0)
    assert torch.equal(first, learned(0, 0.0))
    assert not torch.equal(first, learned(0, 1.0)) and not torch.equal(first, learned(1, 0.0))


def test_scores_and_differences_go_by_seed() -> None:
    def its(single: float, long: float) -> dict[str, Any]:
        return {"single": {"32, one set": single}, "long": {"32, one set": long}}

    measured = {"a/0": its(1, 10), "a/1": its(3, 12), "b/1": its(5, 11), "b/0": its(9, 13), "a, b/0": its(0, 0)}
    assert scored(measured, "a", "single", "32, one set") == Score(2, 1, 3)
    assert scored(measured, "a", "last", "32, one set") == Score(11, 10, 12)
    assert scored(measured, "a", "single", "64, one set") is None
    assert difference(measured, "b", "a") == Score(1, -1, 3)
    assert difference(measured, "a, b", "a") == Score(-10, -10, -10) and difference(measured, "c", "a") is None
    assert (Score(1.0, 1.0, 1.0).text("+"), Score(1, -1, 3).text()) == ("+1.00", "1.00 (-1.00 to 3.00)")


@pytest.mark.parametrize(
    ("its", "paper_db", "text"),
    [
        (Score(-1, -2, -0.5), -3.0, "the paper's"),
        (Score(1, 0.5, 2), -3.0, "opposite to the paper's"),
        (Score(1, -0.5, 2), -3.0, "either, by seed"),
    ],
)
def test_verdicts(its: Score, paper_db: float, text: str) -> None:
    assert verdict(its, paper_db) == text


def test_psnr_is_a_mean_over_clips() -> None:
    a = torch.zeros(2, 3, 4, 8, 8)
    b = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1).expand_as(a)
    assert psnr(a, b) == pytest.approx((20 + 40) / 2, abs=1e-4)
