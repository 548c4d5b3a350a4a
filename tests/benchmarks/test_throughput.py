"""The study of throughput, on two clips and a short film."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.dumps import read_json
from benchmarks.studies import throughput
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok


def test_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)
    TivTok(config).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(throughput, "WAYS", {"one process": [], "in batches": ["--batch", "1"]})
    monkeypatch.setattr(throughput, "FILM_SIZE", (72, 128))
    model, threads = str(tmp_path / "model"), torch.get_num_threads()
    throughput.throughput(
        model, clips=2, clip_frames=5, film_frames=20, rounds=1, before=throughput.ROOT, results=tmp_path
    )
    torch.set_num_threads(threads)
    record = read_json(tmp_path / "throughput.json.gz")
    assert set(record["seconds"]) == {"one process", "in batches"}
    assert all(0 < own["command"] < own["program"] for own in record["seconds"].values())
    assert len(record["folder_profile_seconds"]) == 4 and min(record["folder_profile_seconds"].values()) > 0
    assert all(len(times) == 1 and min(times) > 0 for times in record["profile_seconds"].values())
    assert set(record["programs"]) == {"now", "before"}
    assert all(len(p["seconds"]) == 1 and p["peak_bytes"] > 50e6 for p in record["programs"].values())
    said = (tmp_path / "throughput.md").read_text()
    assert said.count("| in batches |") == 1 and "20 frames of 128x72" in said
    assert re.search(r"\| \w+, before \| \d+\.\d \| \d+ \|", said)

    other = {"one process": [], "other": ["--tiv-sets", "auto", "--size", "32x32"]}
    folder = tmp_path / "clips"
    folder.mkdir()
    throughput.write_clip(folder / "a.mp4", 5, 48, 64, seed=1)
    with pytest.raises(ValueError, match="other gives other tokens than one process"):
        throughput.compare(folder, tmp_path, model, other)
