"""Ten times the frames, the same memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.studies.memory import HEIGHT, WIDTH, measure, peak_bytes, report, write_video
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok

FRAME_BYTES = 3 * HEIGHT * WIDTH  # as uint8; a float32 copy is four times that
SHORT, LONG = 48, 480

pytestmark = [pytest.mark.programs, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    torch.manual_seed(0)
    TivTok(TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)).save_pretrained(
        folder / "model"
    )
    return folder


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct"])
def test_peak_memory_does_not_grow_with_the_video(folder: Path, command: str) -> None:
    peaks = [measure(command, frames, folder / "model", folder) for frames in (SHORT, LONG)]
    assert peaks[1] - peaks[0] < (LONG - SHORT) * FRAME_BYTES / 2, [p / 2**20 for p in peaks]


def test_no_frame_of_a_large_video_is_held_longer_than_it_takes_to_make_it_small(folder: Path) -> None:
    """A chunk of these frames has 177 MB as float32."""
    write_video(folder / "720p.mp4", 40, 720, 1280)
    command = ("encode", folder / "720p.mp4", folder / "720p.tivtok", "--model", folder / "model", "--size", "native")
    assert peak_bytes(*command) < 500e6


def test_what_the_test_itself_has_held_does_not_count() -> None:
    """getrusage would say so, and hide whatever the command takes."""
    held = b"x" * (1 << 30)  # more than torch with CUDA takes
    assert peak_bytes("--help") < len(held)


def test_report_states_the_growth() -> None:
    peaks = {"encode": {"10": 100 << 20, "100": 101 << 20}}
    text = report({"model": "x", "size": [HEIGHT, WIDTH], "peak_bytes": peaks})
    assert "| `tivtok encode` | 100 MiB | 101 MiB | +1.0% |" in text
