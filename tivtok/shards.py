"""Shards of tokens from many videos, one after another, in processes of this machine, or on a Ray cluster.

A shard is the unit of work: whatever ends a worker loses the shards in work, and those that are there are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tivtok.checkpoints import bundled_checkpoints
from tivtok.files import is_remote
from tivtok.pipeline import Encoded, Encoder
from tivtok.processes import WorkerError, each
from tivtok.tokens import Tokens
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.dataset import read_shard, write_shard
from tivtok.tokens.format import StoredDtype
from tivtok.video.sources import VideoRef

RESTARTS = 3  # of a Ray worker, and of the shard that it died in


class Job(NamedTuple):
    """One shard to encode.

    Attributes:
        shard: path of its file, or the address.
        videos: where each is, and what its record says of it.
        dtype, calibration: as in ``Tokens.save``.
    """

    shard: str
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


def encode_shard(job: Job, encoder: Encoder) -> Done:
    """Encode the videos of one shard, and note in it those that cannot be read or have fewer chunks than TIV sets.

    Where the shard is there, those in it are kept.
    """
    kept: dict[tuple[Any, ...], Tokens] = {}
    with suppress(FileNotFoundError):
        kept = {_key(about): tokens for about, tokens in read_shard(job.shard)}
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


def in_processes(jobs: Sequence[Job], encoder: Encoder, devices: Sequence[str], workers: int) -> Iterator[Done]:
    """Encode the shards in ``workers`` processes, which share the devices out among them; each comes when it is done.

    Raises:
        WorkerError: a worker has ended abruptly.
    """
    encoders = [replace(encoder, device=devices[worker % len(devices)]) for worker in range(workers)]
    return each(jobs, [partial(encode_shard, encoder=one) for one in encoders])


def on_ray(jobs: Sequence[Job], encoder: Encoder, workers: int) -> Iterator[Done]:
    """Encode the shards by ``workers`` actors of the Ray cluster that Ray finds, or else starts here.

    Each has a GPU where the cluster has any, unless the encoder's device is the CPU. The videos, the model and where
    the shards go must be found by the same names on all machines. An actor that dies is started anew, up to `RESTARTS`
    times, and does its shard again.

    Returns:
        for each shard what has become of it, when it is done.

    Raises:
        WorkerError: Ray is not installed, or cannot be reached or started, or an actor has died too often.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ModuleNotFoundError:
        raise WorkerError("--engine ray needs Ray: pip install 'tivtok[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        except Exception as error:  # Ray raises no narrower one where its own processes are slow to start
            raise WorkerError(f"Ray cannot be reached or started: {error}") from None
    gpus = int(encoder.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
    if Path(encoder.model).exists() and encoder.model not in bundled_checkpoints():
        encoder = replace(encoder, model=os.path.abspath(encoder.model))
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_ShardEncoder)
    pool = ActorPool([actor.remote(encoder) for _ in range(workers)])
    try:
        yield from pool.map_unordered(lambda one, job: one.encode.remote(job), map(_absolute, jobs))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise WorkerError(f"a worker has died more than {RESTARTS} times: {error}") from None


class _ShardEncoder:
    """An actor: its model is loaded once, for all its shards."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def encode(self, job: Job) -> Done:
        return encode_shard(job, self.encoder)


def _absolute(job: Job) -> Job:
    """The same for a process that runs in another folder."""
    shard = job.shard if is_remote(job.shard) else os.path.abspath(job.shard)
    return job._replace(
        shard=shard, videos=[(replace(ref, path=ref.path.absolute()), about) for ref, about in job.videos]
    )
