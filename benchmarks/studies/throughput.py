"""How many frames per second a folder of videos is encoded with, by what runs the workers; and where the time goes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.dumps import beside, write_json
from benchmarks.provenance import ROOT, provenance
from benchmarks.studies.memory import peak_bytes
from tivtok.files import replacing
from tivtok.streaming import Stream, encode_stream, encode_streams, encode_to_file
from tivtok.tokenizer import TivTok
from tivtok.tokens.dataset import TokenDataset, write_shard
from tivtok.video import VideoReader, VideoWriter
from tivtok.video.source import Source
from tivtok.video.sources import VideoRef, find_sources

CLIP_SIZE, FILM_SIZE = (96, 128), (720, 1280)

WAYS = {
    "one process": ["--workers", "1"],
    "two processes": ["--workers", "2"],
    "Ray, two workers": ["--engine", "ray", "--workers", "2"],
}

out = Console(highlight=False, markup=False)


def throughput(
    model: Annotated[str, typer.Option(help="A bundled checkpoint's name or a checkpoint folder.")] = "tiny",
    clips: Annotated[int, typer.Option(min=2, help="How many short clips the folder has.")] = 200,
    clip_frames: Annotated[int, typer.Option(min=1, help="Frames of each.")] = 40,
    film_frames: Annotated[int, typer.Option(min=1, help="Frames of the 720p file whose encoding is profiled.")] = 600,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each part of the profile is timed.")] = 3,
    before: Annotated[
        Path | None, typer.Option(help="A checkout of an earlier commit, whose `tivtok encode` is timed beside this.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
) -> None:
    """Encode synthetic clips in one process, in two and by Ray, where it is installed, and profile a 720p file (CPU).

    One thread of torch each, in which the tokens of all ways are equal to the bit; it fails where they are not.
    """
    torch.set_num_threads(1)
    ways = {name: way for name, way in WAYS.items() if "ray" not in way or find_spec("ray")}
    with tempfile.TemporaryDirectory() as scratch:
        folder, film = Path(scratch) / "clips", Path(scratch) / "film.mp4"
        folder.mkdir()
        for number in track(range(clips), "Clips", console=Console(stderr=True)):
            write_clip(folder / f"{number:04}.mp4", clip_frames, *CLIP_SIZE, seed=number)
        seconds = compare(folder, Path(scratch), model, ways)
        steps = profile_folder(TivTok.from_pretrained(model), folder, Path(scratch) / "shard-00000.safetensors")
        write_clip(film, film_frames, *FILM_SIZE, seed=0)
        parts = profile(TivTok.from_pretrained(model), film, Path(scratch) / "film.tivtok", rounds)
        checkouts = {"now": ROOT} | ({} if before is None else {"before": before.resolve()})
        programs = compare_programs(film, Path(scratch) / "film.tivtok", model, checkouts, rounds)
    record = {
        "provenance": provenance(torch.device("cpu")),
        "model": model,
        "clips": clips,
        "clip_frames": clip_frames,
        "clip_size": CLIP_SIZE,
        "seconds": seconds,
        "folder_profile_seconds": steps,
        "film_frames": film_frames,
        "film_size": FILM_SIZE,
        "profile_seconds": parts,
        "programs": programs,
    }
    path = results / "throughput.json.gz"
    write_json(path, record)
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text(report(record))
    out.print(f"wrote {path} and .md", soft_wrap=True)


def write_clip(path: Path, frames: int, height: int, width: int, seed: int) -> None:
    """A random texture that moves down and across."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 9, 16)))
    texture = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").byte()[0].permute(1, 2, 0)
    with VideoWriter(path, 25, width, height) as file:
        for t in range(frames):
            file.write(texture.roll((t, 2 * t), (0, 1))[None])


def compare(folder: Path, scratch: Path, model: str, ways: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Seconds of ``tivtok encode-dir`` each way: of the whole program, and by itself, when it has imported torch.

    Raises:
        ValueError: one way gives other tokens than the first.
    """
    seconds: dict[str, dict[str, float]] = {}
    first: Path | None = None
    for number, (name, way) in enumerate(track(ways.items(), "Ways", console=Console(stderr=True))):
        result, said = scratch / str(number), scratch / f"{number}.json"
        options = ["--model", model, "--per-shard", "8", "--json", said, *way]
        command = [sys.executable, "-m", "tivtok", "encode-dir", folder, result, *options]
        start = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([str(word) for word in command], env=environment, check=True, capture_output=True)
        whole = time.perf_counter() - start
        seconds[name] = {"program": whole, "command": json.loads(said.read_text())["totals"]["seconds"]}
        first = first or result
        for one, other in zip(TokenDataset(first), TokenDataset(result), strict=True):
            if not (torch.equal(one.tiv, other.tiv) and torch.equal(one.tv, other.tv)):
                raise ValueError(f"{name} gives other tokens than {next(iter(ways))}")
    return seconds


def profile_folder(model: TivTok, folder: Path, shard: Path) -> dict[str, float]:
    """Seconds of each step of encoding a folder, one step after another in this process."""
    config, refs = model.config, find_sources(folder).videos
    marks = [time.perf_counter()]

    def timed(result: list[Any]) -> list[Any]:
        marks.append(time.perf_counter())
        return result

    sources = timed([Source(ref, config.chunk_frames, "native", config.native_size, threads=1) for ref in refs])
    chunks = timed([list(source.chunks()) for source in sources])
    streams = [Stream(some, source.fps) for some, source in zip(chunks, sources, strict=True)]
    tokens = timed(list(encode_streams(model, streams)))
    videos = [({"path": ref.name}, one) for ref, one in zip(refs, tokens, strict=True)]
    write_shard(shard, videos, [], "float16")
    marks.append(time.perf_counter())
    names = ("opening: timestamps, first frame", "decoding to RGB, and resizing", "model", "writing")
    return {name: end - start for name, (start, end) in zip(names, pairwise(marks), strict=True)}


def profile(model: TivTok, film: Path, result: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of encoding a file at the model's size, and of each step of it by itself."""
    config = model.config
    source = Source(VideoRef(film.name, film), config.chunk_frames, "native", config.native_size)
    chunks = list(source.chunks())
    tokens = encode_stream(model, chunks, fps=source.fps)
    steps: dict[str, Callable[[], Any]] = {
        "decoding, FFmpeg alone": lambda: _exhaust(_raw(film)),
        "decoding to RGB": lambda: _exhaust(VideoReader(film)),
        "decoding to RGB, and resizing": lambda: _exhaust(source.chunks()),
        "model": lambda: _exhaust(encode_streams(model, [Stream(chunks, source.fps)])),
        "writing": lambda: tokens.save(result, "float16"),
        "all of it": lambda: encode_to_file(model, source.chunks(), result, fps=source.fps, dtype="float16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(rounds), "Profile", console=Console(stderr=True)):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare_programs(
    film: Path, result: Path, model: str, checkouts: dict[str, Path], rounds: int
) -> dict[str, dict[str, Any]]:
    """Seconds and peak memory of ``tivtok encode FILM`` as a whole program, of each checkout."""
    told: dict[str, dict[str, Any]] = {
        name: {"commit": _commit(checkout), "seconds": []} for name, checkout in checkouts.items()
    }
    words = ["encode", film, result, "--model", model, "--size", "native"]
    for _ in track(range(rounds), "Programs", console=Console(stderr=True)):
        for name, checkout in checkouts.items():
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
            command = [sys.executable, "-m", "tivtok", *map(str, words)]
            start = time.perf_counter()
            subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
            told[name]["seconds"].append(time.perf_counter() - start)
    for name, checkout in checkouts.items():
        told[name]["peak_bytes"] = peak_bytes(*words, checkout=checkout)
    return told


def _commit(checkout: Path) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()


def _raw(film: Path) -> Iterable[av.VideoFrame]:
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def _exhaust(items: Iterable[np.ndarray | Tensor | Any]) -> None:
    for _ in items:
        pass


def report(record: dict) -> str:
    """As Markdown: a table of the ways, and one of the steps."""
    frames = record["clips"] * record["clip_frames"]
    facts, film = record["provenance"], record["film_frames"]
    median = {name: statistics.median(times) for name, times in record["profile_seconds"].items()}
    (height, width), (film_height, film_width) = record["clip_size"], record["film_size"]
    floor = median["decoding, FFmpeg alone"] + median["model"]
    lines = [
        "# Throughput",
        "",
        f"Model {record['model']}, {facts['device']}, torch {facts['torch']}, one thread of torch for each process.",
        "",
        "Written by `python -m benchmarks.studies throughput`.",
        "",
        "## A folder",
        "",
        f"`tivtok encode-dir` of {record['clips']} clips of {record['clip_frames']} frames of {width}x{height}. The "
        "tokens are equal to the bit. The program includes imports; workers import within the command, too.",
        "",
        "| | program, s | command, s | command, frames per second |",
        "|---|---|---|---|",
    ]
    for name, seconds in record["seconds"].items():
        whole, own = seconds["program"], seconds["command"]
        lines.append(f"| {name} | {whole:.1f} | {own:.1f} | {frames / own:.0f} |")
    lines += [
        "",
        "Where the time of one process goes, each step for all clips before the next:",
        "",
        "| step | s | ms a frame |",
        "|---|---|---|",
        *(f"| {name} | {s:.2f} | {1e3 * s / frames:.2f} |" for name, s in record["folder_profile_seconds"].items()),
        "",
        "## A file",
        "",
        f"Encoding {film} frames of {film_width}x{film_height}, H.264, at the model's size: each step by itself, and "
        "all of it, where decoding goes on in threads while the model computes. Medians of "
        f"{len(next(iter(record['profile_seconds'].values())))} rounds.",
        "",
        "| step | s | ms a frame |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {s:.2f} | {1e3 * s / film:.2f} |" for name, s in median.items()]
    lines += [
        "",
        f"All of it takes {median['all of it'] / floor:.2f} times what FFmpeg and the model take one after the other "
        "(the target is 2).",
        "",
        "As a whole program, `tivtok encode FILE OUT --size native`, imports included, and its peak memory (the target "
        "is 500 MB); of an earlier commit with the checkpoint and the backends that it has without being built:",
        "",
        "| commit | s | MB |",
        "|---|---|---|",
    ]
    for name, told in record["programs"].items():
        commit = f"{told['commit']}, {name}" if told["commit"] else name
        lines.append(f"| {commit} | {statistics.median(told['seconds']):.1f} | {told['peak_bytes'] / 1e6:.0f} |")
    return "\n".join(lines) + "\n"
