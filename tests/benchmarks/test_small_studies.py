"""The studies of precision and of start-up, on a small model and a short clip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.dumps import read_json
from benchmarks.studies.precision import STORED, precision
from benchmarks.studies.start_up import start_up
from benchmarks.studies.throughput import write_clip
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)
    TivTok(config).save_pretrained(folder)
    return str(folder)


def test_precision(model: str, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for seed in range(3):
        write_clip(clips / f"{seed}.mp4", 9, 48, 64, seed)
    for _ in range(2):  # the second time there is nothing to do
        precision(clips, model, frames=8, clips=2, results=tmp_path)
    measured = read_json(tmp_path / "precision.json.gz")["measured"]
    assert sorted(measured) == ["0", "1"]
    for rows in measured.values():
        far = {name: row["tokens"] for name, row in rows.items()}
        assert far["float32"] == 0 < far[STORED] < far["float16"] < far["bfloat16"] < 0.1
        assert rows["float32"]["between the frames"] == 100 > rows["bfloat16"]["between the frames"] > 30
        assert all(abs(row["decoded in it"] - rows["float32"]["decoded in it"]) < 1 for row in rows.values())
    said = (tmp_path / "precision.md").read_text()
    assert "the first 8 frames of 2 clips" in said and said.count("\n| bfloat16 |") == 1


def test_start_up(model: str, tmp_path: Path) -> None:
    start_up(model, rounds=1, results=tmp_path)
    record = read_json(tmp_path / "start-up.json.gz")
    assert next(iter(record["seconds"])) == "import torch" and len(record["seconds"]) == 4
    assert all(len(times) == 1 and min(times) > 0 for times in record["seconds"].values())
    assert "| `tivtok decode --frames 0:16` |" in (tmp_path / "start-up.md").read_text()
