"""The generator on tokens of videos with labels, at toy size: from a list of videos to token files of each class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.generate.flow import TRIVIAL_LOSS, Flow, Rows, Sampling, draw, flow_loss
from examples.generate.lightning import RECIPES, main
from examples.generate.settings import SETTINGS
from examples.generate.shapes import render
from tivtok import TivTok, Tokens
from tivtok.cli import main as tivtok
from tivtok.video import VideoWriter, video_to_frames

CONFIG = SETTINGS["toy"].tokenizer


def test_the_papers_recipe() -> None:
    """As the paper states it; sizes and so, nearly, parameters are those of DiT-XL, 675 million."""
    recipe = RECIPES["paper"]
    assert (recipe.width, recipe.layers, recipe.heads) == (1152, 28, 16)
    assert (recipe.steps, recipe.batch, recipe.learning_rate) == (100_000, 512, 1e-4)
    how = recipe.sampling
    assert (how.steps, how.guidance_from, how.shift) == (50, 0.1, 2.0)
    with torch.device("meta"):
        flow = Flow(CONFIG, 101, recipe.width, recipe.layers, recipe.heads)
    assert 6.5e8 < sum(p.numel() for p in flow.parameters()) < 7e8


def test_levels() -> None:
    even, shifted = Sampling(4).levels(), Sampling(4, shift=2.0).levels()
    assert even.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # noise s becomes 2 s / (1 + s)
    torch.testing.assert_close(shifted, 1 - torch.tensor([1, 6 / 7, 2 / 3, 0.4, 0]))


class Constant(nn.Module):
    """A velocity of 1 of any class and of 0 of none; keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, int]] = []

    def forward(self, x: torch.Tensor, level: torch.Tensor, labels: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.asked.append((round(float(level[0]), 4), int(labels[0])))
        return torch.full_like(x, float(labels[0] >= 0))


def test_guidance_is_added_from_its_level_on() -> None:
    flow, how = Constant(), Sampling(4, guidance=3.0, guidance_from=0.3)
    rows, nothing = Rows.of_tiv(CONFIG), torch.empty(1, 0, 5)
    noise = torch.randn(1, len(rows.slot), 5, generator=torch.Generator().manual_seed(0))
    drawn = draw(flow, torch.tensor([2]), rows, nothing, how, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert flow.asked == [(0, 2), (0.25, 2), (0.5, 2), (0.5, -1), (0.75, 2), (0.75, -1)]
    torch.testing.assert_close(drawn - noise, torch.full_like(noise, 2 * 0.25 + 2 * 0.25 * 3))


def test_labels_are_left_out() -> None:
    torch.manual_seed(0)
    flow, rows = Flow(CONFIG, 3, 16, 1, 1), Rows.of_tiv(CONFIG)
    tokens, labels = torch.randn(64, len(rows.slot), CONFIG.latent_dim), torch.zeros(64, dtype=torch.int64)
    for dropout, of_class, of_none in ((0.0, True, False), (0.5, True, True), (1.0, False, True)):
        for module in (flow.modulate, flow.to_velocity):  # they begin at zero, and so do gradients behind them
            nn.init.normal_(module.weight)
        flow.zero_grad()
        flow_loss(flow, tokens, labels, rows, torch.Generator().manual_seed(0), dropout).backward()
        assert flow.label.weight.grad is not None and flow.unlabelled.grad is not None
        assert bool(flow.label.weight.grad.any()) == of_class and bool(flow.unlabelled.grad.any()) == of_none


def test_from_videos_to_token_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = str(tmp_path / "model")
    TivTok(CONFIG).save_pretrained(model)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("path", "label"))
        for number, video in enumerate(render(np.random.default_rng(0), torch.tensor([0, 4] * 4), 24)):
            with VideoWriter(tmp_path / f"{number}.mp4", 24, 32, 32) as writer:
                writer.write(video_to_frames(video))
            out.writerow((f"{number}.mp4", ("red", "green")[number % 2]))
    assert tivtok(["encode-dir", str(tmp_path / "list.csv"), str(tmp_path / "tokens"), "--model", model]) == 0
    assert tivtok(["stats", str(tmp_path), "--model", model]) == 0
    options = [str(tmp_path / "tokens"), str(tmp_path / "run"), "--model", model, "--recipe", "toy", "--draw", "2"]
    monkeypatch.setattr("sys.argv", ["lightning", *options])
    main()
    drawn = sorted((tmp_path / "run" / "drawn").iterdir())
    assert [path.name for path in drawn] == [f"{c}-{n:03}.tivtok" for c in ("green", "red") for n in (0, 1)]
    tokens = Tokens.load(drawn[0])
    assert TivTok.from_pretrained(model).decode(tokens).shape == (1, 3, 16, 32, 32)
    losses = torch.load(tmp_path / "run" / "flow.pt", weights_only=True)["losses"]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.9 * TRIVIAL_LOSS < 0.9 * np.mean(losses[:3])
    main()  # nothing is left to train
    assert Tokens.load(drawn[0]) == tokens
