"""What was timed on this device: which backend is fastest for a call, which tile for a Triton kernel.

``python -m tivtok_kernels.tune`` writes one file per device to the cache folder. Where that has none, one that comes
with the package is read. A question (see `backend_question` and `tile_question`) that no file answers is decided as if
there were none: by the order of `backends.NAMES`, by the table of `triton.configs`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tivtok_kernels.problem import Problem
from tivtok_kernels.version import __version__

FORMAT = 1

Question = tuple[str | int, ...]


class Entry(NamedTuple):
    """Candidates for an answer to one question, timed in turn on one call.

    Attributes:
        question: what is to be decided.
        call: the call that was timed, for people to read.
        seconds: of each candidate that was right and ran, the median.
        left_out: of each other one, why.
    """

    question: Question
    call: str
    seconds: dict[str, float]
    left_out: dict[str, str]


class Record(NamedTuple):
    """What one file holds.

    Attributes:
        conditions: device, driver, versions, threads, date.
    """

    conditions: dict[str, Any]
    entries: list[Entry]

    def fastest(self, question: Question) -> tuple[str, ...]:
        """The candidates that every entry on ``question`` has, by their mean ratio of times, the fastest first."""
        timed = [entry.seconds for entry in self.entries if entry.question == question and entry.seconds]
        common = [name for name in (timed[0] if timed else ()) if all(name in seconds for seconds in timed)]
        return tuple(sorted(common, key=lambda name: sum(math.log(seconds[name]) for seconds in timed)))


def backend_question(problem: Problem) -> Question:
    """Which backend runs a problem of attention."""
    return ("backend", str(problem.dtype).removeprefix("torch."), problem.head_dim or 0, problem.direction)


def tile_question(kernel: str, arch: int, head_dim: int, math: str) -> Question:
    """Which tile a row of the table of `triton.configs` should have."""
    return ("tile", kernel, arch, head_dim, math)


def fastest(device: torch.device, question: Question, *, of_version: str | None = None) -> tuple[str, ...]:
    """The answers to ``question`` that were measured on this device, the fastest first; empty if there are none.

    Args:
        of_version: a package whose version must be the one that was measured.
    """
    record = read(device)
    if record is None or (of_version and record.conditions["versions"].get(of_version) != version(of_version)):
        return ()
    return record.fastest(question)


@cache
def read(device: torch.device) -> Record | None:
    """The record of this device, read once per process; None if there is none, or none that can be read."""
    for folder in folders():
        path = folder / file_name(device)
        if path.exists():
            try:
                return load(path)
            except (OSError, ValueError) as error:
                warnings.warn(f"left out, so that nothing counts as measured here: {error}", stacklevel=2)
    return None


def load(path: Path) -> Record:
    """Read a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a record of this format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        entries = [
            Entry(
                tuple(entry["question"]),
                str(entry["call"]),
                {str(name): _positive(seconds) for name, seconds in entry["seconds"].items()},
                dict(entry["left_out"]),
            )
            for entry in data["entries"]
        ]
        dict(data["conditions"]["versions"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must hold a record of format {FORMAT} as the tuner writes it, got {error}") from None
    return Record(data["conditions"], entries)


def save(record: Record, path: Path) -> None:
    """Write a record; a reader finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [entry._asdict() for entry in record.entries]
    part = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        content = {"format": FORMAT, "conditions": record.conditions, "entries": entries}
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    read.cache_clear()


def conditions(device: torch.device) -> dict[str, Any]:
    """What times depend on: device, driver, versions, threads, and the precision of float32 products."""
    return {
        "device": device_name(device),
        "driver": driver() if device.type == "cuda" else None,
        "versions": {name: version(name) for name in ("tivtok", "torch", "triton")},
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "float32": torch.backends.cuda.matmul.fp32_precision if device.type == "cuda" else None,
    }


def changes(record: Record, device: torch.device) -> list[str]:
    """What is other than when the record was made, in words."""
    then, now = (_flat(facts) for facts in (record.conditions, conditions(device)))
    return [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]


def folders() -> tuple[Path, ...]:
    """Where files are looked for, in this order."""
    return cache_folder() / "measured", Path(__file__).with_name("measured")


def cache_folder() -> Path:
    """``$TIVTOK_HOME``, or ``~/.cache/tivtok`` where TIVTOK_HOME is not set."""
    home = os.environ.get("TIVTOK_HOME")
    return Path(home) if home else Path.home() / ".cache" / "tivtok"


def file_name(device: torch.device) -> str:
    return f"{slug(device_name(device))}.json"


def device_name(device: torch.device) -> str:
    """The GPU's name; or the CPU's, with the cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model()}, {cores} cores"


def slug(name: str) -> str:
    """A file name for a device: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def version(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    if package == "tivtok":
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The version of the NVIDIA driver, None if there is no telling."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _positive(seconds: object) -> float:
    if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ValueError(f"{seconds!r} for seconds")
    return float(seconds)


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    return {**{name: x for name, x in facts.items() if not isinstance(x, dict)}, **facts["versions"]}
