"""``tivtok encode-dir``."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from tivtok.cli.options import (
    DeviceOption,
    ModelOption,
    Precision,
    PrecisionOption,
    RefineOption,
    SizeOption,
    StoredDtype,
    StoredDtypeOption,
    StrictOption,
    TivSetsOption,
    calibration_for,
    parse_tiv_sets,
)
from tivtok.cli.output import CommandError, say, say_left_out, track, warn
from tivtok.files import replacing
from tivtok.pipeline import Encoder
from tivtok.refinement import check_refinable
from tivtok.tokens import Tokens
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.dataset import INDEX_FILE, shard_name, write_index, write_shard
from tivtok.video import search_folder
from tivtok.video.sources import VideoRef

PLAN_FILE = "plan.json"
SHOWN_FAILURES = 20

# What a plan means that does not say it: those of earlier versions do not.
NOT_SAID = {"refine": 0, "precision": "auto"}


class Job(NamedTuple):
    """One shard, and all that a worker needs to encode it."""

    shard: Path
    source: Path
    videos: list[str]
    encoder: Encoder
    dtype: Literal["float32", "float16", "int8", "coded"]
    calibration: Calibration | None


def encode_dir(
    folder: Annotated[Path, typer.Argument(metavar="IN_DIR", help="Videos, in folders or not.")],
    result: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Shards and an index; made if it does not exist.")],
    model: ModelOption = "tiny",
    size: SizeOption = "native",
    tiv_sets: TivSetsOption = "1",
    dtype: StoredDtypeOption = StoredDtype.FLOAT16,
    per_shard: Annotated[int, typer.Option(min=1, help="Videos in a shard.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Shards encoded at a time, each in its own process.")] = 1,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Do the I-th of N shares, beside N - 1 other processes on any machines.")
    ] = "1/1",
    refine: RefineOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    strict: StrictOption = False,
) -> None:
    """Encode all videos of a folder to token shards for `tivtok.tokens.dataset.TokenDataset`; go on where it stopped.

    What is no video, or cannot be read, is left out, reported and listed in the index; that is no error unless nothing
    is left. With --part, whoever finishes the last shard writes the index.

    Example: tivtok encode-dir clips/ tokens/ --workers 4
    """
    sets, (share, shares) = parse_tiv_sets(tiv_sets), _parse_part(part)
    found = search_folder(folder)
    say_left_out(found.left_out)
    names = [str(path.relative_to(folder)) for path in found.files]
    if not names:
        raise CommandError(f"there are no videos in {folder}")
    threads = 1 if workers > 1 else 0
    encoder = Encoder(model, device, precision, size, sets, refine, strict=strict, threads=threads)
    calibration = calibration_for(dtype, model)
    if refine:
        check_refinable(encoder.tokenizer.config, refine)
    options = {"size": size, "tiv_sets": tiv_sets, "dtype": dtype.value, "per_shard": per_shard}
    options |= {"refine": refine, "precision": precision.value}
    _check_plan(result, options | {"model": encoder.tokenizer.model_id, "videos": names})
    jobs = [
        Job(result / shard_name(number), folder, names[at : at + per_shard], encoder, dtype.value, calibration)
        for number, at in enumerate(range(0, len(names), per_shard))
    ]
    to_do = [job for job in jobs[share - 1 :: shares] if not job.shard.exists()]
    damage: list[str] = []
    for lines in track(_run(to_do, workers), "encoding", len(to_do), "shards", lambda _: 1):
        damage += lines
    for line in damage:
        warn(line)
    if missing := sum(not job.shard.exists() for job in jobs):
        say(f"wrote {len(to_do)} shards of part {part}; {missing} of {len(jobs)} are missing before there is an index")
        return
    left_out = [{"path": str(path.relative_to(folder)), "reason": reason} for path, reason in found.left_out]
    index = write_index(result, len(jobs), left_out)
    failed = index["failed"]
    for lost in failed[:SHOWN_FAILURES]:
        say(f"left out {lost['path']}: {lost['error']}")
    more = f", {len(failed)} could not be encoded: {INDEX_FILE} says why" if failed else ""
    say(f"wrote {result}: {len(index['videos'])} videos in {len(jobs)} shards{more}")
    if not index["videos"]:
        raise CommandError(f"none of the {len(names)} videos in {folder} could be encoded")


def encode_shard(job: Job) -> list[str]:
    """Encode the videos of one shard; those that cannot be read are noted in it.

    Returns:
        A line on each video whose damage a decoder has made up for.
    """
    done: list[tuple[str, Tokens]] = []
    failed: list[tuple[str, str]] = []
    damage: list[str] = []
    for name in job.videos:
        try:
            tokens, warning = job.encoder.encode(VideoRef(name, job.source / name))
            done.append((name, tokens))
            damage += filter(None, [warning])
        except ValueError as error:  # a video that cannot be read, or has fewer chunks than TIV sets
            failed.append((name, str(error)))
    write_shard(job.shard, done, failed, job.dtype, job.calibration)
    return damage


def _run(jobs: list[Job], workers: int) -> Iterator[list[str]]:
    """Encode the shards; yields what `encode_shard` returns of each when it is done."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield encode_shard(job)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads can hang
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=spawn, initializer=_quiet_ctrl_c) as pool:
        try:
            for done in as_completed(_submitted(pool, jobs)):
                yield done.result()
        except SystemExit:  # a worker's, whose ctrl-C came back before this process had seen its own
            raise KeyboardInterrupt from None
        except BrokenProcessPool:
            raise CommandError("a worker ended abruptly, out of memory perhaps: go on with fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, jobs: list[Job]) -> list[Future[list[str]]]:
    """Start the workers with ctrl-C held back: it would interrupt their imports, with a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(encode_shard, job) for job in jobs]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _quiet_ctrl_c() -> None:
    """Workers get ctrl-C, too: they clean up and end without a traceback; the command says what happened."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # held back until here, and nothing to clean up yet
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))


def _parse_part(text: str) -> tuple[int, int]:
    """--part -> (I, N).

    Raises:
        CommandError: it is no I/N with 1 <= I <= N.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise CommandError(f'--part must be I/N with 1 <= I <= N, such as 2/8, got "{text}"')
    return int(match[1]), int(match[2])


def _check_plan(result: Path, plan: dict[str, object]) -> None:
    """Note what a folder of shards is made of, so that what was begun with one plan is not finished with another.

    Raises:
        CommandError: another plan was begun there.
    """
    result.mkdir(parents=True, exist_ok=True)
    path = result / PLAN_FILE
    try:
        begun = json.loads(path.read_text(encoding="utf-8")) if path.exists() else plan
    except ValueError:
        raise CommandError(f"{path} is damaged: remove {result} and begin anew") from None
    different = [
        name for name in plan if not isinstance(begun, dict) or begun.get(name, NOT_SAID.get(name)) != plan[name]
    ]
    if different:
        raise CommandError(
            f"{result} was begun with other {' and '.join(different)}: name another folder, or remove it"
        )
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
