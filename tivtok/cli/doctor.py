"""``tivtok doctor``."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

import tivtok_kernels
from tivtok.cli.output import print_rows, say
from tivtok_kernels import backends, measured
from tivtok_kernels.cpu import backend
from tivtok_kernels.problem import Problem


def doctor() -> None:
    """List the attention backends that run here, and why the others do not.

    Example: tivtok doctor
    """
    extension = find_spec("tivtok_kernels.cuda.extension")
    versions = {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("tivtok", "torch", "triton", "av")},
        "CUDA extension": extension.origin if extension and extension.origin else "not built (docs/cuda.md)",
        "CPU engine": _cpu_engine(),
        "nvcc": shutil.which("nvcc") or "not found",
        "GPU": _gpu(),
    }
    print_rows(versions, "Versions")
    for device in ("cpu", "cuda"):
        say("")
        if device == "cuda" and not torch.cuda.is_available():
            print_rows({"none": f"no CUDA device (torch {torch.__version__} sees none)"}, "Backends for cuda tensors")
        else:
            print_rows(_backends(device), f"Backends for {device} tensors")
            print_rows(_measured(torch.device(device)), f"Fastest for {device} tensors")


def _backends(device: str) -> dict[str, str]:
    """Backend name -> "ok", with its caveat if it has one, or why it cannot run."""
    answers = tivtok_kernels.available_backends(device)
    for name in [name for name, answer in answers.items() if answer == "ok"]:
        if caveat := getattr(backends.load(name), "CAVEAT", None):
            answers[name] = f"ok, but {caveat}"
    return answers


def _measured(device: torch.device) -> dict[str, str]:
    """What ``python -m tivtok_kernels.tune`` has found on this device, and what is other than it was then."""
    record = measured.read(device)
    if record is None:
        return {"nothing measured": '"auto" takes the first that can; python -m tivtok_kernels.tune measures'}
    rows = {"measured": ", ".join([record.conditions["date"], *measured.changes(record, device)])}
    for question in dict.fromkeys(entry.question for entry in record.entries):
        rows[" ".join(map(str, question))] = ", ".join(record.fastest(question)) or "nothing that could be timed"
    return rows


def _cpu_engine() -> str:
    """The instruction sets of the CPU engine, or why there is none."""
    if reason := backend.why_not(Problem(torch.device("cpu"))):
        return reason
    others = [name if runs else f"{name} (not on this machine)" for name, runs in backend.variants().items()]
    return f"{backend.variant()}, of {', '.join(others)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
