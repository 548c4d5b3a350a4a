"""``--json``: every command says what it has done in the same words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tivtok.cli import main
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.video import VideoWriter

FRAMES = 18


def test_one_shape_for_all_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1, num_tiv=4)
    model = TivTok(config.replace(native_size=(16, 16)))
    model.save_pretrained(tmp_path / "model")
    videos = tmp_path / "videos"
    videos.mkdir()
    with VideoWriter(videos / "a.mp4", 25, 16, 16) as out:
        out.write(np.zeros((FRAMES, 16, 16, 3), np.uint8))
    (videos / "broken.mp4").write_bytes(b"no video")
    clip, tokens, shown = str(videos / "a.mp4"), str(tmp_path / "a.tivtok"), str(tmp_path / "b.mp4")
    shards = str(tmp_path / "shards")
    commands = {
        "encode": ([clip, tokens], tokens, 0),
        "decode": ([tokens, shown], shown, 0),
        "reconstruct": ([clip, shown], shown, 0),
        "eval": ([str(videos)], None, 1),
        "encode-dir": ([str(videos), shards], shards, 1),
    }
    for command, (arguments, wrote, failed) in commands.items():
        assert main([command, *arguments, "--model", str(tmp_path / "model"), "--json", "-"]) == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        totals = record["totals"]
        assert list(record)[:4] == ["command", "wrote", "model", "totals"]
        assert (record["command"], record["wrote"]) == (command, wrote)
        assert record["model"] == {"name": "tiny", "id": model.model_id}
        assert (totals["videos"], totals["failed"], totals["frames"], totals["tokens"]) == (1, failed, FRAMES, 24)
        assert totals["frames_per_second"] == pytest.approx(FRAMES / totals["seconds"], rel=0.05)
    assert main(["encode", clip, tokens, "--model", str(tmp_path / "model"), "--json", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["totals"]["frames"] == FRAMES
    assert "{" not in capsys.readouterr().out
