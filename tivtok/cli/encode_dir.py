"""``tivtok encode-dir``."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from tivtok.cli.options import (
    CompileOption,
    DeviceOption,
    ModelOption,
    Precision,
    PrecisionOption,
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
from tivtok.cli.workers import each
from tivtok.files import replacing
from tivtok.pipeline import Encoded, Encoder
from tivtok.refinement import check_refinable
from tivtok.tokens import Tokens
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.dataset import INDEX_FILE, read_failed, read_shard, shard_name, write_index, write_shard
from tivtok.tokens.format import STORED_DTYPES, StoredDtype
from tivtok.tokens.rows import COLUMNS
from tivtok.video.sources import VideoRef, find_sources

PLAN_FILE = "plan.json"
SHOWN_FAILURES = 20

# Values of plans that do not state them: earlier versions did not write them.
NOT_SAID = {"refine": 0, "precision": "auto", "format": "safetensors"}


class Storage(StrEnum):
    SAFETENSORS = "safetensors"
    PARQUET = "parquet"


class Job(NamedTuple):
    """One shard to encode.

    Attributes:
        shard: its file.
        videos: where each is, and what its record says of it.
        dtype, calibration: as in ``Tokens.save``.
    """

    shard: Path
    videos: list[tuple[VideoRef, dict[str, Any]]]
    dtype: StoredDtype
    calibration: Calibration | None


class Done(NamedTuple):
    """What has become of a `Job`.

    Attributes:
        listed: how many videos the shard is of.
        videos, failed, frames, tokens: how many were encoded now, or could not be.
        damage: a line on each video whose damage a decoder has made up for.
    """

    listed: int
    videos: int
    failed: int
    frames: int
    tokens: int
    damage: list[str]


def encode_dir(
    data: Annotated[
        Path, typer.Argument(metavar="IN", help="A folder of videos and tars of videos, or a list: .csv or .parquet.")
    ],
    result: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Shards and an index; made if it does not exist.")],
    model: ModelOption = "tiny",
    size: SizeOption = "native",
    tiv_sets: TivSetsOption = "1",
    dtype: StoredDtypeOption = "float16",
    storage: Annotated[Storage, typer.Option("--format", help="Of the shards.")] = Storage.SAFETENSORS,
    per_shard: Annotated[int, typer.Option(min=1, help="Videos in a shard.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Shards encoded at a time, each in its own process.")] = 1,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Do the I-th of N shares, beside N - 1 other processes on any machines.")
    ] = "1/1",
    batch: Annotated[
        int, typer.Option(min=1, help="Chunks that go through the model together, of several videos of one size.")
    ] = 1,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what could not be encoded.")] = False,
    refine: RefineOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    compile: CompileOption = False,
    strict: StrictOption = False,
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
    if refine and batch > 1:
        raise CommandError("--batch does not go with --refine, which takes one video at a time")
    if storage is Storage.PARQUET and find_spec("pyarrow") is None:
        raise CommandError("--format parquet needs pyarrow: pip install 'tivtok[parquet]'")
    if storage is Storage.PARQUET and dtype not in STORED_DTYPES:
        raise CommandError(f"--format parquet stores {' or '.join(STORED_DTYPES)}, got --dtype {dtype}")
    found = find_sources(data)
    if taken := {name for ref in found.videos for name in ref.columns} & {"shard", "key", "error", *COLUMNS}:
        raise CommandError(f"{data} must name its columns otherwise: {', '.join(sorted(taken))} are those of tokens")
    say_left_out(found.left_out)
    videos = [(ref, _about(ref, data)) for ref in found.videos]
    threads = 1 if workers > 1 else 0
    encoder = Encoder(
        model, device, precision, size, sets, refine, strict=strict, threads=threads, at_once=batch, compile=compile
    )
    calibration = calibration_for(dtype, model)
    if refine:
        check_refinable(encoder.tokenizer.config, refine)
    options = {"size": size, "tiv_sets": tiv_sets, "dtype": dtype, "per_shard": per_shard}
    options |= {"refine": refine, "precision": precision.value, "format": storage.value}
    listing = [about["path"] if len(about) == 1 else about for _, about in videos]
    _check_plan(result, options | {"model": encoder.tokenizer.model_id, "videos": listing})
    jobs = [
        Job(result / shard_name(number, storage.value), videos[at : at + per_shard], dtype, calibration)
        for number, at in enumerate(range(0, len(videos), per_shard))
    ]
    to_do = [job for job in jobs[share - 1 :: shares] if not job.shard.exists() or (retry and read_failed(job.shard))]
    total = sum(len(job.videos) for job in to_do)
    done = list(
        track(
            each(to_do, partial(encode_shard, encoder=encoder), workers),
            "encoding",
            total,
            "videos",
            lambda one: one.listed,
        )
    )
    for line in (line for one in done for line in one.damage):
        warn(line)
    left_out = [{"path": _name(path, data), "reason": reason} for path, reason in found.left_out]
    _finish(result, jobs, storage, left_out, f"wrote {len(to_do)} shards of part {part}")
    counts = [sum(getattr(one, name) for one in done) for name in ("videos", "frames", "tokens", "failed")]
    summary.write(encoder.tokenizer, result, *counts)


def _about(ref: VideoRef, data: Path) -> dict[str, Any]:
    """What a record says of a video: its path, and of a list the rest."""
    path = _name(ref.path if ref.member is None else ref.path / ref.name, data)
    if data.is_dir():
        return {"path": path}
    return {"path": path, "start": ref.start, "end": ref.end, **ref.columns}


def _name(path: Path, data: Path) -> str:
    """``path`` from the folder of videos or of the list, if it is in there."""
    folder = data if data.is_dir() else data.parent
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _finish(result: Path, jobs: list[Job], storage: Storage, left_out: list[dict[str, str]], partly: str) -> None:
    """Write the index where all shards are there, and say so."""
    if missing := sum(not job.shard.exists() for job in jobs):
        say(f"{partly}; {missing} of {len(jobs)} are missing before there is an index")
        return
    count, failed = write_index(result, len(jobs), left_out, storage.value)
    for lost in failed[:SHOWN_FAILURES]:
        say(f"left out {lost['path']}: {lost['error']}")
    more = f", {len(failed)} could not be encoded: {INDEX_FILE} says why" if failed else ""
    say(f"wrote {result}: {count} videos in {len(jobs)} shards{more}")
    if not count:
        raise CommandError(f"none of the {len(failed)} videos could be encoded")


def encode_shard(job: Job, encoder: Encoder) -> Done:
    """Encode the videos of one shard, and note in it those that cannot be read or have fewer chunks than TIV sets.

    Where the shard is there, those in it are kept.
    """
    kept = {_key(about): tokens for about, tokens in (read_shard(job.shard) if job.shard.exists() else ())}
    missing = [ref for ref, about in job.videos if _key(about) not in kept]
    encoded = encoder.encode(missing)
    videos: list[tuple[dict[str, Any], Tokens]] = []
    failed: list[dict[str, Any]] = []
    damage: list[str] = []
    for _, about in job.videos:
        one = Encoded(kept[_key(about)]) if _key(about) in kept else next(encoded)
        if one.tokens is None:
            failed.append(about | {"error": one.error})
        else:
            videos.append((about, one.tokens))
        damage += filter(None, [one.warning])
    write_shard(job.shard, videos, failed, job.dtype, job.calibration)
    new = [tokens for about, tokens in videos if _key(about) not in kept]
    frames, tokens = (sum(getattr(x, name) for x in new) for name in ("num_frames", "num_tokens"))
    return Done(len(job.videos), len(new), len(failed), frames, tokens, damage)


def _key(about: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(about.get(name) for name in ("path", "start", "end"))


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
