"""CUDA backend: the kernels of csrc/, for 16-bit tensors on NVIDIA GPUs (docs/cuda.md).

Importing this module does not load the extension; the first question about it does.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from tivtok_kernels.cuda import configs
from tivtok_kernels.problem import Call, Direction, Problem
from tivtok_kernels.tensors import gpu_limit

NOT_BUILT = "its extension is not built: TIVTOK_BUILD_CUDA=1 pip install -e . builds it where nvcc is found"


def why_not(problem: Problem) -> str | None:
    device, dtype, head_dim = problem.device, problem.dtype, problem.head_dim
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type} tensors"
    if dtype not in (None, torch.bfloat16, torch.float16):
        return f"it has kernels for bfloat16 and float16, not for {str(dtype).removeprefix('torch.')}"
    if head_dim is not None and (head_dim % 8 or head_dim > configs.MAX_HEAD_DIM):
        return f"head_dim must be a multiple of 8 up to {configs.MAX_HEAD_DIM}, got {head_dim}"
    if problem.batch_invariant:
        return "it cuts long rows by the length of the whole batch, so it is not batch-invariant"
    return _load_error() or gpu_limit(device) or _driver_limit(device)


# The extension works on the current device. torch changes it without a context on one that nobody uses.


def plan_call(call: Call, direction: Direction) -> None:
    with torch.cuda.device_of(call.q):
        _launch("launch" if direction == "forward" else "launch_backward").plan_call(call)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(call.q):
        return _launch("launch").forward(call)


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    with torch.cuda.device_of(call.q):
        return _launch("launch_backward").backward(call, out, lse, dout, dlse)


@cache
def _launch(name: str) -> ModuleType:
    return import_module(f"tivtok_kernels.cuda.{name}")


@cache
def _driver_limit(device: torch.device) -> str | None:
    """Why the driver cannot run the extension's code on ``device``, None if it can.

    Machine code needs a driver of the toolkit's major version, PTX one as new as the toolkit, since the driver is its
    compiler.
    """
    extension = import_module("tivtok_kernels.cuda.extension")
    driver, toolkit = extension.versions()
    built, knows = (f"CUDA {version // 1000}.{version % 1000 // 10}" for version in (toolkit, driver))
    if driver // 1000 < toolkit // 1000:
        return f"its extension was built by {built}, and the driver is of {knows}"
    major, minor = configs.capability(device)
    names = [name for name in extension.ARCHITECTURES.split(",") if configs.runs_on(name, (major, minor))]
    if not names and driver < toolkit:
        return (
            f"its extension has machine code for {extension.ARCHITECTURES}, not for compute capability "
            f"{major}.{minor}, and a driver of {knows} cannot compile the PTX of {built}"
        )
    return None


@cache
def _load_error() -> str | None:
    try:
        import_module("tivtok_kernels.cuda.extension")
    except ModuleNotFoundError:
        return NOT_BUILT
    except ImportError as error:
        return f"its extension cannot be loaded: {error}"
    return None
