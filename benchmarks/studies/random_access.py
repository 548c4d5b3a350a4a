"""How long a few frames take out of a long token file, against all of it."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.dumps import beside, write_json
from tivtok.files import replacing
from tivtok.streaming import decode_stream
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens

CHUNKS_PER_SET = 4

out = Console(highlight=False, markup=False)


def random_access(
    model: Annotated[str, typer.Option(help="A bundled checkpoint's name or a checkpoint folder.")] = "tiny",
    frames: Annotated[int, typer.Option(min=1000, help="Length of the video.")] = 3000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each request is timed.")] = 5,
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
) -> None:
    """Time to open a token file and decode one frame, 100 frames in a row, 100 far apart, and all of them (CPU)."""
    tokenizer = TivTok.from_pretrained(model)
    requests = {
        "one frame": [frames // 2],
        "100 frames in a row": range(frames // 2, frames // 2 + 100),
        "100 frames far apart": range(0, frames, frames // 100)[:100],
        "all frames": range(frames),
    }
    seconds: dict[str, list[float]] = {name: [] for name in requests}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "long.tivtok"
        random_tokens(tokenizer, frames).save(file)
        _time(tokenizer, file, requests["one frame"])  # the first call of a process is slower
        for _ in track(range(rounds), "Measuring", console=Console(stderr=True)):
            for name, wanted in requests.items():
                seconds[name].append(_time(tokenizer, file, wanted))
    record = {
        "model": f"{tokenizer.config.name}, {tokenizer.config.native_size[1]}x{tokenizer.config.native_size[0]}",
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "frames": frames,
        "seconds": {name: [round(s, 5) for s in times] for name, times in seconds.items()},
    }
    path = results / "long-video-random-access.json.gz"
    write_json(path, record)
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text(report(record))
    out.print(f"wrote {path} and .md", soft_wrap=True)


def random_tokens(model: TivTok, frames: int) -> Tokens:
    """Noise in the shape of a video's tokens: what decoding costs does not depend on the values."""
    config = model.config
    groups = config.num_groups(frames)
    index = torch.arange(groups) // (config.groups_per_chunk * CHUNKS_PER_SET)
    height, width = config.native_size
    return Tokens(
        tiv=torch.randn(1, int(index[-1]) + 1, config.num_tiv, config.latent_dim),
        tv=torch.randn(1, groups, config.num_tv, config.latent_dim),
        tiv_index=index,
        num_frames=frames,
        height=height,
        width=width,
        fps=25.0,
        preset=config.name,
        model_id=model.model_id,
    )


def _time(model: TivTok, file: Path, wanted: Sequence[int]) -> float:
    start = time.perf_counter()
    count = sum(len(run) for run in decode_stream(model, Tokens.open(file), wanted))
    seconds = time.perf_counter() - start
    assert count == len(wanted)
    return seconds


def report(record: dict) -> str:
    """As Markdown: the median time of each request and its share of that of all frames."""
    medians = {name: statistics.median(times) for name, times in record["seconds"].items()}
    lines = [
        "# Random access",
        "",
        f"Opening a token file of {record['frames']} frames and decoding some of them. Medians of "
        f"{len(record['seconds']['all frames'])} rounds. Model {record['model']}, {record['machine']}.",
        "",
        "Written by `python -m benchmarks.studies random-access`.",
        "",
        "| request | ms | of the time of all |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {1e3 * s:.1f} | {s / medians['all frames']:.2%} |" for name, s in medians.items()]
    return "\n".join(lines) + "\n"
