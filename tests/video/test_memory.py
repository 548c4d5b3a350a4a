"""Ten times the frames, the same memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tivtok.config import TivTokConfig
from tivtok.model import TivTok
from tivtok.video import VideoWriter

HEIGHT, WIDTH = 144, 192
FRAME_BYTES = 3 * HEIGHT * WIDTH  # as uint8; a float32 copy is four times that
SHORT, LONG = 48, 480

PROGRAM = """
import resource, sys, torch
from tivtok.cli import main
torch.set_num_threads(1)
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    torch.manual_seed(0)
    TivTok(TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)).save_pretrained(
        folder / "model"
    )
    ramp = np.linspace(0, 255, WIDTH, dtype=np.uint8)
    for frames in (SHORT, LONG):
        with VideoWriter(folder / f"{frames}.mp4", 25, WIDTH, HEIGHT) as out:
            for i in range(frames):
                out.write(np.broadcast_to(np.roll(ramp, i)[None, :, None], (HEIGHT, WIDTH, 3)))
    return folder


def peak_bytes(*arguments: object) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_peak_memory_does_not_grow_with_the_video(folder: Path, command: str) -> None:
    suffix = ".tivtok" if command == "encode" else ".mp4"
    peaks = []
    for frames in (SHORT, LONG):
        source = folder / (f"{frames}.tivtok" if command == "decode" else f"{frames}.mp4")
        if command == "decode":
            peak_bytes("encode", folder / f"{frames}.mp4", source, "--model", folder / "model")
        peaks.append(peak_bytes(command, source, folder / f"out{suffix}", "--model", folder / "model"))
    assert peaks[1] - peaks[0] < (LONG - SHORT) * FRAME_BYTES / 2, [p / 2**20 for p in peaks]
