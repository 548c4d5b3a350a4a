"""`tivtok calibrate`, and coded files by the commands that write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_cli import CONFIG, fails, write_clip

from tivtok.cli import main
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.dataset import TokenDataset


def test_a_calibrated_model_writes_coded_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = tmp_path / "model"
    TivTok(CONFIG).save_pretrained(model)
    before = TivTok.from_pretrained(model).model_id
    clips = tmp_path / "clips"
    clips.mkdir()
    clip = write_clip(clips / "a.mp4", 37)
    write_clip(clips / "b.mp4", 20)
    coded, exact = str(tmp_path / "coded.tivtok"), str(tmp_path / "exact.tivtok")
    of_model = ["--model", str(model)]
    assert "has no coding.json" in fails(capsys, ["encode", clip, coded, *of_model, "--dtype", "coded"])

    assert main(["calibrate", str(clips), *of_model, "--loss", "0.5"]) == 0
    assert "times smaller than float16" in capsys.readouterr().out
    calibrated = Calibration.from_pretrained(model)
    assert TivTok.from_pretrained(model).model_id == before

    assert main(["encode", clip, coded, *of_model, "--dtype", "coded"]) == 0
    assert main(["encode", clip, exact, *of_model, "--dtype", "float32"]) == 0
    got, expected = Tokens.load(coded), Tokens.load(exact)
    assert 0 < (got.tv - expected.tv).abs().max() < expected.tv.std() * 4
    assert main(["decode", coded, str(tmp_path / "part.mp4"), *of_model, "--frames", "16:20"]) == 0
    assert main(["encode-dir", str(clips), str(tmp_path / "shards"), *of_model, "--dtype", "coded"]) == 0
    assert [video.num_frames for video in TokenDataset(tmp_path / "shards")] == [37, 20]
    assert main(["swap", coded, exact, str(tmp_path / "swapped.tivtok"), *of_model, "--dtype", "int8"]) == 0
    capsys.readouterr()
    assert main(["info", coded]) == 0
    told = capsys.readouterr().out
    assert "float16" not in told and f"{Path(coded).stat().st_size / 37 * 30000 / 1001:,.0f} bytes in the file" in told
    assert "--dtype" in fails(capsys, ["encode", clip, coded, *of_model, "--dtype", "float64"], code=2)

    (clips / "broken.mp4").write_bytes(b"x" * 100)
    assert main(["calibrate", str(clips), *of_model, "--loss", "0.5"]) == 1
    printed = capsys.readouterr()
    assert f"left out {clips / 'broken.mp4'}" in printed.out and "of 2 videos" in printed.out
    assert "1 of 3 videos could not be read" in printed.err
    assert Calibration.from_pretrained(model) == calibrated
    assert main(["calibrate", str(clips), *of_model, "--loss", "0.5", "--precision", "bfloat16"]) == 1
    assert Calibration.from_pretrained(model).model_id == calibrated.model_id


def test_info_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--preset", "t512", "--frames", "32"]) == 0
    assert "640 tokens" in capsys.readouterr().out
    assert "of a FILE or of a --preset" in fails(capsys, ["info"])
    assert "preset must be one of" in fails(capsys, ["info", "--preset", "t7"])


def test_calibrate_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TivTok(CONFIG).save_pretrained(tmp_path / "model")
    (tmp_path / "none").mkdir()
    error = fails(capsys, ["calibrate", str(tmp_path / "none"), "--model", str(tmp_path / "model")])
    assert "there are no videos in" in error
