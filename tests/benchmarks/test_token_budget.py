"""The study of token budgets, at toy size: it trains, goes on, and its table has a row for each budget and target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.dumps import read_json
from benchmarks.studies import token_budget
from benchmarks.studies.__main__ import app


def test_the_command_trains_once_and_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_budget, "TEST_CLIPS", 2)
    monkeypatch.setattr(token_budget, "BUDGETS", ((24, 4), (6, 1)))
    monkeypatch.setattr(token_budget, "TARGETS", (3.0, 90.0))
    monkeypatch.setattr(token_budget, "TRIALS", {name: token_budget.TRIALS[name] for name in ("any number", "6+1")})
    command = ["token-budget", str(tmp_path / "models"), "--results", str(tmp_path), "--steps", "2", "--batch", "4"]
    CliRunner().invoke(app, command, catch_exceptions=False)
    measured = read_json(tmp_path / "token-budget.json.gz")["measured"]
    assert list(measured["any number"]["budgets"]) == ["24+4", "6+1"] and list(measured["6+1"]["budgets"]) == ["6+1"]
    assert measured["6+1"]["budgets"]["6+1"]["tokens, 64"] == 6 + 16
    targets = measured["any number"]["targets"]
    assert targets["90"]["reached"] == 0 < targets["3"]["reached"] and targets["3"]["tokens"] < 24 + 16 * 4
    text = (tmp_path / "token-budget.md").read_text()
    assert text.count("\n| ") == 1 + 3 + 1 + 2

    monkeypatch.setattr(token_budget, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    (tmp_path / "token-budget.json.gz").unlink()
    CliRunner().invoke(app, command, catch_exceptions=False)
    assert read_json(tmp_path / "token-budget.json.gz")["measured"] == measured


def test_nested_steps_are_drawn_beside_the_others() -> None:
    """The share of nested steps changes what is learned, and nothing of what is drawn where it is 0."""
    none, all_nested = (
        token_budget.train(token_budget.MODEL.replace(nested=True), share, 2, 4, seed=0) for share in (0.0, 1.0)
    )
    alike = [torch.equal(a, b) for a, b in zip(none.parameters(), all_nested.parameters(), strict=True)]
    assert not all(alike)
