"""`--num-tiv`, `--num-tv` and `--psnr` of the commands that encode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_cli import CONFIG, fails, write_clip

from tivtok.cli import main
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.tokens.dataset import TokenDataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with nested tokens, one without, and two clips."""
    folder = tmp_path_factory.mktemp("budgets")
    torch.manual_seed(0)
    TivTok(CONFIG.replace(nested=True)).save_pretrained(folder / "model")
    TivTok(CONFIG).save_pretrained(folder / "plain")
    (folder / "clips").mkdir()
    for name, frames in (("a", 21), ("b", 33)):
        write_clip(folder / "clips" / f"{name}.mp4", frames)
    return folder


def test_encode_keeps_so_many(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out, of_model = (
        str(folder / "clips" / "a.mp4"),
        str(tmp_path / "a.tivtok"),
        ["--model", str(folder / "model")],
    )
    assert main(["encode", clip, out, *of_model, "--num-tiv", "7", "--num-tv", "2"]) == 0
    tokens = Tokens.load(out)
    assert (tokens.tiv.shape[2], tokens.tv.shape[2], tokens.counts, tokens.num_tokens) == (7, 2, None, 7 + 6 * 2)
    assert main(["encode", clip, out, *of_model, "--psnr", "1", "--num-tiv", "7", "--dtype", "int8"]) == 0
    tokens = Tokens.load(out)
    assert tokens.counts is not None and tokens.num_tokens == 1 + 6  # anything has 1 dB
    assert main(["info", out]) == 0
    told = capsys.readouterr()
    assert "1 set of 1 = 1" in told.out and "6 frame groups of 1 = 6" in told.out and told.err == ""
    assert main(["encode", clip, out, *of_model, "--psnr", "90"]) == 0
    assert f"{clip}: 6 frame groups stay below 90 dB with all of their tokens" in capsys.readouterr().err
    assert main(["decode", out, str(tmp_path / "back.mp4"), *of_model]) == 0


def test_encode_dir_keeps_so_many(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["encode-dir", str(folder / "clips"), "--model", str(folder / "model")]
    assert main([*shared, str(tmp_path / "cut"), "--num-tiv", "7"]) == 0
    assert [tokens.tiv.shape[2] for tokens in TokenDataset(tmp_path / "cut")] == [7, 7]
    assert json.loads((tmp_path / "cut" / "plan.json").read_text())["num_tiv"] == 7
    assert "was begun with other num_tiv" in fails(capsys, [*shared, str(tmp_path / "cut")])
    for storage in ("safetensors", "parquet"):
        pytest.importorskip("pyarrow")
        result = str(tmp_path / storage)
        assert main([*shared, result, "--psnr", "1", "--format", storage]) == 0
        # 3 is the least number of 20 TIV tokens that is tried
        assert [tokens.num_tokens for tokens in TokenDataset(result)] == [3 + 6, 3 + 9]
    capsys.readouterr()
    assert main([*shared, str(tmp_path / "missed"), "--psnr", "90"]) == 0
    assert "b.mp4: 9 frame groups stay below 90 dB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("plain", ["--num-tiv", "3"], "num_tiv is for models with nested tokens: model mini needs all of them"),
        ("model", ["--num-tv", "6"], "num_tv must be between 1 and 4, got 6"),
        ("model", ["--psnr", "nan"], "psnr must be a number of dB above 0, got nan"),
        ("model", ["--psnr", "20", "--refine", "2"], "psnr does not go with refine"),
    ],
)
def test_what_cannot_be(
    folder: Path, tmp_path: Path, model: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    of_model = ["--model", str(folder / model)]
    clip, clips = str(folder / "clips" / "a.mp4"), str(folder / "clips")
    assert message in fails(capsys, ["encode", clip, str(tmp_path / "a.tivtok"), *of_model, *options])
    assert message in fails(capsys, ["encode-dir", clips, str(tmp_path / "shards"), *of_model, *options])
    assert list(tmp_path.iterdir()) == []
