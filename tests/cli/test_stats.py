"""`tivtok stats`: what is counted, and what is said of files that are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tivtok.cli import main
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens.statistics import LatentStats

VIDEOS = Path(__file__).parents[1] / "data" / "videos"


def test_unreadable_videos_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, clips = tmp_path / "model", tmp_path / "clips"
    torch.manual_seed(0)
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)
    TivTok(config).save_pretrained(model)
    clips.mkdir()
    (clips / "broken.mp4").write_bytes(b"x" * 100)
    assert main(["stats", str(clips), "--model", str(model)]) == 1
    assert f"{clips} has no video that can be read, of 1" in capsys.readouterr().err
    assert not (model / "latents.safetensors").exists()

    shutil.copy(VIDEOS / "lost_packets.ts", clips / "lost.mkv")
    assert main(["stats", str(clips), "--model", str(model)]) == 1
    printed = capsys.readouterr()
    assert f"left out {clips / 'broken.mp4'}" in printed.out and "of 1 videos" in printed.out
    assert "1 of 2 videos could not be read" in printed.err and "1 of 93 frames" in printed.err
    (clips / "broken.mp4").unlink()
    whole = LatentStats.from_pretrained(model)

    shutil.copy(VIDEOS / "late_start.ts", clips / "sound.mkv")
    assert main(["stats", str(clips), "--model", str(model), "--strict"]) == 1
    assert "damaged: frame 51" in capsys.readouterr().out
    strict = LatentStats.from_pretrained(model)
    assert not torch.equal(strict.tv_mean, whole.tv_mean)
    (clips / "lost.mkv").unlink()
    assert main(["stats", str(clips), "--model", str(model)]) == 0
    assert torch.equal(LatentStats.from_pretrained(model).tv_mean, strict.tv_mean)  # nothing of a refused video counts
    assert main(["stats", str(clips), "--model", str(model), "--precision", "bfloat16"]) == 0
    rounded = LatentStats.from_pretrained(model)
    assert rounded.model_id == strict.model_id and 0 < (rounded.tv_std - strict.tv_std).abs().max() < 0.02
