"""The generator of moving shapes in examples/generate, at toy size: the detector, the training, what is drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.dumps import read_json
from examples.generate.__main__ import main
from examples.generate.flow import TRIVIAL_LOSS, Flow, Rows, flow_loss
from examples.generate.measuring import cost, generated, quality
from examples.generate.report import as_markdown
from examples.generate.settings import SETTINGS, Settings
from examples.generate.shapes import CLASSES, MOTIONS, SIDE, detect, render
from examples.generate.training import Latents, Trained, encode, train_flow, train_tokenizer
from examples.generate.ways import WAYS
from tivtok import TivTok, TivTokConfig

TOY = SETTINGS["toy"]
ROOT = Path(__file__).parents[2]
QUOTED = ("| reconstructed, one TIV set |", "| split |", "| split, neighbours |", "| undivided |")


@pytest.mark.parametrize("frames", [16, 64, 256])
def test_the_detector_reads_true_clips(frames: int) -> None:
    labels = torch.arange(len(CLASSES))
    for label, video in enumerate(render(np.random.default_rng(frames), labels, frames)):
        seen = detect(video)
        assert seen.is_of(label) and seen.drift < 1e-4
        assert seen.errors[label % len(MOTIONS)] < 0.5


def test_the_detector_sees_what_is_wrong() -> None:
    video = render(np.random.default_rng(0), torch.tensor([0]), 64)[0]
    brighter = video.clone()
    brighter[:, 48:] += 0.1
    assert detect(brighter).drift == pytest.approx(0.1 * 127.5, rel=1e-3)
    without = video.clone()
    without[:, 30] = -0.5
    assert detect(without).colour == -1
    stopped = video[:, :1].expand(-1, 64, -1, -1)
    jumping = torch.cat([video[:, :32], video[:, :32]], dim=1)
    assert detect(stopped).errors[0] > 2 and detect(jumping).errors[0] > 1


class Run(NamedTuple):
    model: TivTok
    latents: Latents
    flows: dict[str, tuple[Flow, Trained]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    model, _ = train_tokenizer(TOY, folder)
    latents = encode(model, TOY)
    return Run(model, latents, {way: train_flow(way, latents.videos, TOY, folder) for way in WAYS})


@pytest.mark.parametrize("name", WAYS)
def test_it_learns(run: Run, name: str) -> None:
    """Far more than the spread of each number by itself, which is all that the trivial predictor knows."""
    losses = run.flows[name][1].losses
    assert np.mean(losses[:5]) > TRIVIAL_LOSS and np.mean(losses[-30:]) < 0.8 * TRIVIAL_LOSS


def test_one_tiv_set_drifts_less(run: Run) -> None:
    drift = {
        name: quality(generated(name, flow, run.model, run.latents.stats, TOY), 64, TOY)["drift"]
        for name, (flow, _) in run.flows.items()
    }
    assert drift["split"] < 0.7 * drift["undivided"]


def test_costs_are_those_of_the_tokens(run: Run) -> None:
    costs = {name: [cost(name, flow, TOY, frames) for frames in (64, 256)] for name, (flow, _) in run.flows.items()}
    assert [c["tokens"] for c in costs["split"]] == [(12 + 16) / 64, (12 + 64) / 256]
    assert [c["tokens"] for c in costs["undivided"]] == [1, 1]
    assert costs["split"][1]["flops"] < costs["split"][0]["flops"] < costs["undivided"][0]["flops"]
    assert costs["undivided"][1]["flops"] > costs["undivided"][0]["flops"]  # attention grows with the square


def test_tv_tokens_see_other_frames_through_tiv_tokens_or_as_neighbours() -> None:
    """After one block a TV token knows nothing of frame groups that it does not see, after two it does."""
    config = TOY.tokenizer
    for neighbours, seen in ((0, [4]), (1, [3, 4]), (2, [2, 3, 4])):  # by the last of five groups
        rows = Rows.of_tv(config, 5, neighbours)
        for layers in (1, 2):
            torch.manual_seed(0)
            flow = Flow(config, len(CLASSES), 32, layers, 2)
            for p in flow.parameters():  # gates begin at zero
                torch.nn.init.normal_(p, std=0.1)
            x = torch.randn(2, len(rows.slot), config.latent_dim, requires_grad=True)
            flow(x, torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), rows)[0, -1].sum().backward()
            assert x.grad is not None and not x.grad[1].any()
            reach = x.grad[0].abs().sum(1)
            assert (reach[: config.num_tiv] > 0).all()
            assert reach[config.num_tiv :].nonzero().flatten().tolist() == (seen if layers == 1 else [0, 1, 2, 3, 4])


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(TOY, steps=12)
    monkeypatch.setattr("examples.generate.training.SAVE_EVERY", 5)
    (tmp_path / "one").mkdir()
    flow, whole = train_flow("split", run.latents.videos, short, tmp_path / "one")

    calls = []

    def stop(*args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2 * 8:
            raise KeyboardInterrupt
        return flow_loss(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("examples.generate.ways.flow_loss", stop)
        train_flow("split", run.latents.videos, short, tmp_path)
    again, resumed = train_flow("split", run.latents.videos, short, tmp_path)
    assert resumed.losses == whole.losses
    for a, b in zip(again.parameters(), flow.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, numbers and pictures; run again it trains nothing and says the same; with other settings it refuses."""
    tiny = replace(TOY, tokenizer_steps=2, videos=12, steps=2, lengths=(16,), euler_steps=2)
    monkeypatch.setitem(SETTINGS, "toy", tiny)
    monkeypatch.setattr("sys.argv", ["generate", str(tmp_path), "--size", "toy"])
    main()
    names = {"generate.json", "generate.md", "generate.png", "generate.webp", "settings.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    text = (tmp_path / "generate.md").read_text()
    assert "| true videos | 16 | 100% | 100% |" in text and "| split | 2 |" in text
    with Image.open(tmp_path / "generate.webp") as moving:
        assert moving.n_frames == 16 and moving.size == (4 * 3 * SIDE, (1 + len(WAYS)) * 3 * SIDE)
    before = json.loads((tmp_path / "generate.json").read_text())
    main()
    after = json.loads((tmp_path / "generate.json").read_text())
    assert after["measured"]["split"]["16"]["drift"] == before["measured"]["split"]["16"]["drift"]
    assert after["training"] == before["training"]
    monkeypatch.setitem(SETTINGS, "toy", replace(tiny, steps=3))
    with pytest.raises(SystemExit, match="has a run with other settings"):
        main()


def test_the_committed_result() -> None:
    """It is of the full size as it stands, its page is what its numbers say, and examples/README.md quotes the page."""
    result = read_json(ROOT / "docs" / "results" / "generate.json.gz")
    stated = {key: tuple(value) if isinstance(value, list) else value for key, value in result["settings"].items()}
    stated["tokenizer"] = TivTokConfig.from_dict(stated["tokenizer"])
    assert Settings(**stated) == SETTINGS["full"]
    page = (ROOT / "docs" / "results" / "generate.md").read_text()
    assert page == as_markdown("generate", result)
    rows = [line for line in (ROOT / "examples" / "README.md").read_text().splitlines() if line.startswith(QUOTED)]
    assert len(rows) == len(QUOTED) * len(SETTINGS["full"].lengths) and set(rows) <= set(page.splitlines())
