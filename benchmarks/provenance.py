"""Provenance of a number: device, driver, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def provenance(device: torch.device) -> dict[str, Any]:
    """Facts that a result depends on. Two runs with equal provenance may be put into one file."""
    return {
        "device": device_name(device),
        "kind": device.type,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": _output("git", "rev-parse", "HEAD"),
        "dirty": bool(_output("git", "status", "--porcelain", "--", ".", ":!docs/results", ":!README.md")),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name; or the CPU's, with the cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model()}, {cores} cores"


def slug(name: str) -> str:
    """A file name for a device: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def committed(path: Path) -> bytes | None:
    """A file as of the last commit, None if it is not in it."""
    return _run("git", "show", f"HEAD:{path.resolve().relative_to(ROOT).as_posix()}")


def committed_files(folder: Path) -> list[Path]:
    """The files of a folder as of the last commit; none for a folder outside of the repository."""
    if not folder.resolve().is_relative_to(ROOT):
        return []
    listed = _output("git", "ls-tree", "--name-only", "HEAD", f"{folder.resolve().relative_to(ROOT).as_posix()}/")
    return [ROOT / name for name in (listed or "").splitlines()]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """`_run` as text, without white space around it."""
    output = _run(*command)
    return None if output is None else output.decode().strip()


def _run(*command: str) -> bytes | None:
    """Standard output of a command in the repository, None if there is no such command or it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
