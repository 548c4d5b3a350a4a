"""Provenance of a number: device, driver, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from tivtok_kernels.measured import device_name, driver, version

ROOT = Path(__file__).parents[1]


def provenance(device: torch.device) -> dict[str, Any]:
    """Facts that a result depends on. Two runs with equal provenance may be put into one file."""
    return {
        "device": device_name(device),
        "kind": device.type,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": _output("git", "rev-parse", "HEAD"),
        "dirty": bool(_output("git", "status", "--porcelain", "--", ".", ":!docs/results", ":!README.md")),
    }


def committed(path: Path) -> bytes | None:
    """A file as of the last commit, None if it is not in it."""
    return _run("git", "show", f"HEAD:{path.resolve().relative_to(ROOT).as_posix()}")


def committed_files(folder: Path) -> list[Path]:
    """The files of a folder as of the last commit; none for a folder outside of the repository."""
    if not folder.resolve().is_relative_to(ROOT):
        return []
    listed = _output("git", "ls-tree", "--name-only", "HEAD", f"{folder.resolve().relative_to(ROOT).as_posix()}/")
    return [ROOT / name for name in (listed or "").splitlines()]


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
