"""``tivtok encode-dir``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from tivtok.budgets import Budget
from tivtok.cli.options import (
    CompileOption,
    ModelOption,
    NumTivOption,
    NumTvOption,
    Precision,
    PrecisionOption,
    PsnrOption,
    ReaderOption,
    RefineOption,
    SizeOption,
    StoredDtypeOption,
    StrictOption,
    TivSetsOption,
    calibration_for,
    parse_tiv_sets,
)
from tivtok.cli.output import CommandError, say, say_left_out, track, warn
from tivtok.cli.summary import JsonOption, Summary
from tivtok.files import is_remote, make_folder, names_in, open_in, replacing_in
from tivtok.loading import device_named
from tivtok.pipeline import Encoder
from tivtok.refinement import check_refinable
from tivtok.shards import Done, Job, in_processes, on_ray
from tivtok.tokens.dataset import INDEX_FILE, read_failed, shard_name, write_index
from tivtok.tokens.format import STORED_DTYPES, StoredDtype
from tivtok.tokens.rows import COLUMNS
from tivtok.video.readers import check_reader
from tivtok.video.sources import VideoRef, find_sources

PLAN_FILE = "plan.json"
SHOWN_FAILURES = 20

# Values of plans that do not state them: earlier versions did not write them.
NOT_SAID = {
    "refine": 0,
    "precision": "auto",
    "format": "safetensors",
    "reader": "pyav",
    "num_tiv": None,
    "num_tv": None,
    "psnr": None,
}


class Storage(StrEnum):
    SAFETENSORS = "safetensors"
    PARQUET = "parquet"


class Engine(StrEnum):
    LOCAL = "local"
    RAY = "ray"


def encode_dir(
    data: Annotated[
        Path, typer.Argument(metavar="IN", help="A folder of videos and tars of videos, or a list: .csv or .parquet.")
    ],
    result: Annotated[
        str, typer.Argument(metavar="OUT_DIR", help="Shards and an index: a folder, made if missing, or an address.")
    ],
    model: ModelOption = "tiny",
    size: SizeOption = "native",
    tiv_sets: TivSetsOption = "1",
    dtype: StoredDtypeOption = "float16",
    storage: Annotated[Storage, typer.Option("--format", help="Of the shards.")] = Storage.SAFETENSORS,
    per_shard: Annotated[int, typer.Option(min=1, help="Videos in a shard.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Shards encoded at a time, each in its own process; as many as devices.", show_default=False
        ),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="What runs the workers: this machine, or a Ray cluster.")] = (
        Engine.LOCAL
    ),
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Do the I-th of N shares, beside N - 1 other processes on any machines.")
    ] = "1/1",
    batch: Annotated[
        int, typer.Option(min=1, help="Chunks that go through the model together, of several videos of one size.")
    ] = 1,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what could not be encoded.")] = False,
    refine: RefineOption = 0,
    num_tiv: NumTivOption = None,
    num_tv: NumTvOption = None,
    psnr: PsnrOption = None,
    devices: Annotated[
        str, typer.Option("--devices", "--device", help='As of `encode`, or several GPUs by their numbers: "0,1".')
    ] = "auto",
    precision: PrecisionOption = Precision.AUTO,
    compile: CompileOption = False,
    strict: StrictOption = False,
    reader: ReaderOption = "pyav",
    json_file: JsonOption = None,
) -> None:
    """Encode all videos of a folder or a list to token shards for `tivtok.tokens.dataset.TokenDataset`.

    Run again it goes on where it stopped. A list has the column path, and perhaps start and end in seconds; other
    columns stay with the tokens. What is no video, or cannot be read, is left out, reported and listed in the index;
    that is no error unless nothing is left. With --part, whoever finishes the last shard writes the index.

    Example: tivtok encode-dir clips/ tokens/ --workers 4
    """
    summary = Summary("encode-dir", json_file)
    sets, (share, shares) = parse_tiv_sets(tiv_sets), _parse_part(part)
    if (refine or psnr is not None) and batch > 1:
        raise CommandError("--batch does not go with --refine and --psnr, which take one video at a time")
    result = result.removeprefix("file://")
    _check_storage(storage, dtype, result)
    names, count = _parse_devices(devices, workers, engine)
    found = find_sources(data)
    if taken := {name for ref in found.videos for name in ref.columns} & {"shard", "key", "error", *COLUMNS}:
        raise CommandError(f"{data} must name its columns otherwise: {', '.join(sorted(taken))} are those of tokens")
    say_left_out(found.left_out)
    videos = [(ref, _about(ref, data)) for ref in found.videos]
    alone = engine is Engine.LOCAL and count == 1
    if engine is Engine.LOCAL:
        check_reader(reader, strict)
    budget = Budget(num_tiv, num_tv, psnr)
    encoder = Encoder(
        *(model, names[0], precision, size, sets, refine),
        strict=strict,
        threads=0 if alone else 1,
        at_once=batch,
        budget=budget,
        reader=reader,
        compile=compile,
    )
    tokenizer = (encoder if alone else Encoder(model, "cpu")).tokenizer
    calibration = calibration_for(dtype, model)
    budget.check(tokenizer.config, refine)
    if refine:
        check_refinable(tokenizer.config, refine)
    options = {"size": size, "tiv_sets": tiv_sets, "dtype": dtype, "per_shard": per_shard}
    options |= {"refine": refine, "precision": precision.value, "format": storage.value, "reader": reader}
    options |= asdict(budget)
    listing = [about["path"] if len(about) == 1 else about for _, about in videos]
    _check_plan(result, options | {"model": tokenizer.model_id, "videos": listing})
    shards = [shard_name(number, storage.value) for number in range(-(-len(videos) // per_shard))]
    jobs = [
        Job(os.path.join(result, name), videos[at * per_shard : (at + 1) * per_shard], dtype, calibration)
        for at, name in enumerate(shards)
    ]
    there = names_in(result)
    to_do = [
        job
        for name, job in list(zip(shards, jobs, strict=True))[share - 1 :: shares]
        if name not in there or (retry and read_failed(job.shard))
    ]
    total = sum(len(job.videos) for job in to_do)
    running = _run(to_do, encoder, names, count, engine)
    done = list(track(running, "encoding", total, "videos", lambda one: one.listed))
    for line in (line for one in done for line in one.damage):
        warn(line)
    left_out = [{"path": _name(path, data), "reason": reason} for path, reason in found.left_out]
    _finish(result, shards, storage, left_out, f"wrote {len(to_do)} shards of part {part}")
    counts = [sum(getattr(one, name) for one in done) for name in ("videos", "frames", "tokens", "failed")]
    summary.write(tokenizer, result, *counts)


def _about(ref: VideoRef, data: Path) -> dict[str, Any]:
    """What a record says of a video: its path, and of a list the rest."""
    path = ref.address or _name(Path(ref.place), data)
    if data.is_dir():
        return {"path": path}
    return {"path": path, "start": ref.start, "end": ref.end, **ref.columns}


def _name(path: Path, data: Path) -> str:
    """``path`` from the folder of videos or of the list, if it is in there."""
    folder = data if data.is_dir() else data.parent
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _finish(result: str, shards: list[str], storage: Storage, left_out: list[dict[str, str]], partly: str) -> None:
    """Write the index where all shards are there, and say so."""
    if missing := len(set(shards) - names_in(result)):
        say(f"{partly}; {missing} of {len(shards)} are missing before there is an index")
        return
    count, failed = write_index(result, len(shards), left_out, storage.value)
    for lost in failed[:SHOWN_FAILURES]:
        say(f"left out {lost['path']}: {lost['error']}")
    more = f", {len(failed)} could not be encoded: {INDEX_FILE} says why" if failed else ""
    say(f"wrote {result}: {count} videos in {len(shards)} shards{more}")
    if not count:
        raise CommandError(f"none of the {len(failed)} videos could be encoded")


def _run(jobs: list[Job], encoder: Encoder, devices: list[str], workers: int, engine: Engine) -> Iterator[Done]:
    """Encode the shards; each comes when it is done."""
    if engine is Engine.RAY and jobs:
        return on_ray(jobs, encoder, workers)
    return in_processes(jobs, encoder, devices, workers)


def _parse_devices(text: str, workers: int | None, engine: Engine) -> tuple[list[str], int]:
    """--devices and --workers -> torch's names of the devices, and how many workers there are.

    Raises:
        CommandError: there are more devices than workers, or Ray is to have some.
        ValueError: one of the devices is not there.
    """
    if engine is Engine.RAY:
        if text not in ("auto", "cpu"):
            raise CommandError(f'--engine ray chooses devices itself: --devices must be auto or cpu, got "{text}"')
        return [text], workers or 1
    devices = [device_named(name.strip()) for name in text.split(",")]
    if workers is not None and workers < len(devices):
        raise CommandError(f"--workers must be at least the {len(devices)} --devices, got {workers}")
    return devices, workers or len(devices)


def _parse_part(text: str) -> tuple[int, int]:
    """--part -> (I, N).

    Raises:
        CommandError: it is no I/N with 1 <= I <= N.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise CommandError(f'--part must be I/N with 1 <= I <= N, such as 2/8, got "{text}"')
    return int(match[1]), int(match[2])


def _check_storage(storage: Storage, dtype: StoredDtype, result: str) -> None:
    """
    Raises:
        CommandError: the format is not for these values, that place, or what is installed.
    """
    if storage is Storage.PARQUET and find_spec("pyarrow") is None:
        raise CommandError("--format parquet needs pyarrow: pip install 'tivtok[parquet]'")
    if storage is Storage.PARQUET and dtype not in STORED_DTYPES:
        raise CommandError(f"--format parquet stores {' or '.join(STORED_DTYPES)}, got --dtype {dtype}")
    if storage is Storage.SAFETENSORS and is_remote(result):
        raise CommandError(f"--format safetensors is for folders, whose files can be mapped; for {result} take parquet")


def _check_plan(result: str, plan: dict[str, object]) -> None:
    """Note what a folder of shards is made of, so that what was begun with one plan is not finished with another.

    Raises:
        CommandError: another plan was begun there.
    """
    make_folder(result)
    begun: Any = plan
    try:
        with suppress(FileNotFoundError), open_in(result, PLAN_FILE) as file:
            begun = json.loads(file.read())
    except ValueError:
        where = os.path.join(result, PLAN_FILE)
        raise CommandError(f"{where} is damaged: remove {result} and begin anew") from None
    different = [
        name for name in plan if not isinstance(begun, dict) or begun.get(name, NOT_SAID.get(name)) != plan[name]
    ]
    if different:
        raise CommandError(
            f"{result} was begun with other {' and '.join(different)}: name another folder, or remove it"
        )
    with replacing_in(result, PLAN_FILE) as temporary:
        temporary.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
