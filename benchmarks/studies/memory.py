"""Peak memory of the commands that take long videos, by the length of the video."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.dumps import beside, write_json
from benchmarks.provenance import ROOT
from tivtok.files import replacing
from tivtok.video import VideoWriter

HEIGHT, WIDTH = 144, 192
MIB = 1 << 20

# The high-water mark of the program itself: getrusage's would begin with that of the process that started it.
_PROGRAM = """
import re, sys, torch
from pathlib import Path
from tivtok.cli import main
torch.set_num_threads(1)
failed = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(failed)
"""

# glibc keeps freed memory of its heap, in holes that differ from run to run by 100 MiB and more. Blocks from this size
# on go back to the system when they are freed, so that what is measured is what is held.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}

out = Console(highlight=False, markup=False)


def memory(
    model: Annotated[str, typer.Option(help="A bundled checkpoint's name or a checkpoint folder.")] = "tiny",
    frames: Annotated[list[int] | None, typer.Option(help="Lengths of the videos; 300 and 3000 by default.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
) -> None:
    """Peak resident memory of encode, decode and reconstruct on a synthetic H.264 video, one thread. Linux only."""
    lengths = sorted(frames or (300, 3000))
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(length, command) for length in lengths for command in ("encode", "decode", "reconstruct")]
        peaks: dict[str, dict[str, int]] = {}
        for length, command in track(jobs, "Measuring", console=Console(stderr=True)):
            peaks.setdefault(command, {})[str(length)] = measure(command, length, model, Path(folder))
    path = results / "long-video-memory.json.gz"
    record = {"model": model, "size": [HEIGHT, WIDTH], "threads": 1, "peak_bytes": peaks}
    write_json(path, record)
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text(report(record))
    out.print(f"wrote {path} and .md", soft_wrap=True)


def measure(command: str, length: int, model: str | Path, folder: Path) -> int:
    """Peak bytes of ``tivtok COMMAND`` on a video of ``length`` frames; what it needs is made in ``folder`` once."""
    video, tokens = folder / f"{length}.mp4", folder / f"{length}.tivtok"
    if not video.exists():
        write_video(video, length)
    if command == "decode" and not tokens.exists():
        peak_bytes("encode", video, tokens, "--model", model)
    source = tokens if command == "decode" else video
    result = tokens if command == "encode" else folder / "out.mp4"
    return peak_bytes(command, source, result, "--model", model)


def peak_bytes(*arguments: object, checkout: Path = ROOT) -> int:
    """The most memory that ``tivtok ARGUMENTS`` has had resident, Python and PyTorch included.

    Args:
        checkout: the folder whose ``tivtok`` it is.
    """
    program = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(program, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout.split()[-1])


def write_video(path: Path, length: int, height: int = HEIGHT, width: int = WIDTH) -> None:
    """A ramp of grey that moves."""
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    with VideoWriter(path, 25, width, height) as file:
        for i in range(length):
            file.write(np.broadcast_to(np.roll(ramp, i)[None, :, None], (height, width, 3)))


def report(record: dict) -> str:
    """As Markdown: a row for each command, growth from the shortest video to the longest."""
    lengths = list(next(iter(record["peak_bytes"].values())))
    height, width = record["size"]
    lines = [
        "# Memory by the length of the video",
        "",
        "Peak resident memory, Python and PyTorch included. "
        f"Model {record['model']}, {width}x{height}, H.264, one thread.",
        "",
        "glibc gives blocks of 128 KiB and more back to the system (`MALLOC_MMAP_THRESHOLD_`), so that this is what is "
        "held; without it, holes in the heap come on top.",
        "",
        "Written by `python -m benchmarks.studies memory`.",
        "",
        f"| | {' | '.join(f'{length} frames' for length in lengths)} | growth |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for command, peaks in record["peak_bytes"].items():
        sizes = list(peaks.values())
        cells = " | ".join(f"{size / MIB:.0f} MiB" for size in sizes)
        lines.append(f"| `tivtok {command}` | {cells} | {sizes[-1] / sizes[0] - 1:+.1%} |")
    return "\n".join(lines) + "\n"
