"""How long a short command takes against ``import torch`` alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.dumps import beside, write_json
from benchmarks.provenance import provenance
from benchmarks.studies.memory import write_video
from tivtok.files import replacing

FRAMES = 64
TARGET = 1.3  # times `import torch`

out = Console(highlight=False, markup=False)


def start_up(
    model: Annotated[str, typer.Option(help="A bundled checkpoint's name or a checkpoint folder.")] = "tiny",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each program is run.")] = 7,
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
) -> None:
    """Time whole programs, one after another in each round: `import torch`, and commands that end soon (CPU)."""
    with tempfile.TemporaryDirectory() as folder:
        video, tokens = Path(folder) / "clip.mp4", Path(folder) / "clip.tivtok"
        write_video(video, FRAMES, 64, 64)
        _run("-m", "tivtok", "encode", video, tokens, "--model", model)
        programs: dict[str, tuple[object, ...]] = {
            "import torch": ("-c", "import torch"),
            "tivtok --help": ("-m", "tivtok", "--help"),
            "tivtok info": ("-m", "tivtok", "info", tokens),
            "tivtok decode --frames 0:16": (
                *("-m", "tivtok", "decode", tokens, Path(folder) / "out.mp4", "--frames", "0:16", "--model", model),
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for number in track(range(rounds + 1), "Programs", console=Console(stderr=True)):
            for name, arguments in programs.items():
                took = _run(*arguments)
                if number:  # the first time files are read from the disk
                    seconds[name].append(took)
    record = {"provenance": provenance(torch.device("cpu")), "model": model, "seconds": seconds}
    path = results / "start-up.json.gz"
    write_json(path, record)
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text(report(record))
    out.print(f"wrote {path} and .md", soft_wrap=True)


def _run(*arguments: object) -> float:
    """Seconds of a Python program."""
    command = [sys.executable, *map(str, arguments)]
    start = time.perf_counter()
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return time.perf_counter() - start


def report(record: dict[str, Any]) -> str:
    """As Markdown: a row for each program."""
    facts, rounds = record["provenance"], len(record["seconds"]["import torch"])
    median = {name: statistics.median(times) for name, times in record["seconds"].items()}
    lines = [
        "# Start-up",
        "",
        f"Whole programs, medians of {rounds} rounds. Model {record['model']}, {facts['device']}, Python "
        f"{facts['python']}, torch {facts['torch']}, one thread. {TARGET} times `import torch` is the target of "
        f"`info` and `decode`; the tokens are of {FRAMES} frames of 64x64.",
        "",
        "Written by `python -m benchmarks.studies start-up`.",
        "",
        "| program | s | of `import torch` |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {s:.2f} | {s / median['import torch']:.2f} |" for name, s in median.items()]
    return "\n".join(lines) + "\n"
