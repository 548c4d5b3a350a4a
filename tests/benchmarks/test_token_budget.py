"""The study of token budgets, at toy size: it trains, goes on, and its table has a row for each budget and target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.dumps import read_json
from benchmarks.studies import token_budget
from benchmarks.studies.__main__ import app
from tivtok.training.trainer import Trainer


def test_the_command_trains_once_and_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_budget, "TEST_CLIPS", 2)
    monkeypatch.setattr(token_budget, "BUDGETS", ((24, 4), (6, 1)))
    monkeypatch.setattr(token_budget, "TARGETS", (3.0, 90.0))
    monkeypatch.setattr(token_budget, "TRIALS", {name: token_budget.TRIALS[name] for name in ("any number", "6+1")})
    command = ["token-budget", str(tmp_path / "models"), "--results", str(tmp_path), "--steps", "2", "--batch", "2"]
    CliRunner().invoke(app, command, catch_exceptions=False)
    measured = read_json(tmp_path / "token-budget.json.gz")["measured"]
    assert list(measured["any number"]["budgets"]) == ["24+4", "6+1"] and list(measured["6+1"]["budgets"]) == ["6+1"]
    assert measured["6+1"]["budgets"]["6+1"]["tokens, 64"] == 6 + 16
    targets = measured["any number"]["targets"]
    assert targets["90"]["reached"] == 0 < targets["3"]["reached"] and targets["3"]["tokens"] < 24 + 16 * 4
    assert targets["3"]["uniform"] == 1 + 16 and targets["90"]["uniform"] == 1 + 16  # anything has 3 dB, nothing 90
    text = (tmp_path / "token-budget.md").read_text()
    assert text.count("\n| ") == 1 + 3 + 1 + 2
    assert (tmp_path / "token-budget.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(token_budget, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    (tmp_path / "token-budget.json.gz").unlink()
    CliRunner().invoke(app, command, catch_exceptions=False)
    assert read_json(tmp_path / "token-budget.json.gz")["measured"] == measured


def test_a_killed_training_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_budget, "SAVE_EVERY", 2)
    config = token_budget.recipe("any number", 5, 2)
    whole = token_budget.train(config, tmp_path / "whole.safetensors")
    step = Trainer.step

    def killed(self: Trainer, video: Tensor, number: int) -> dict[str, float] | None:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, video, number)

    with monkeypatch.context() as until, pytest.raises(KeyboardInterrupt):
        until.setattr(Trainer, "step", killed)
        token_budget.train(config, tmp_path / "state.safetensors")
    monkeypatch.setattr(Trainer, "step", lambda *args: step(*args) if args[2] > 1 else pytest.fail("began again"))
    again = token_budget.train(config, tmp_path / "state.safetensors")
    assert list(tmp_path.iterdir()) == []
    for name, x in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name
