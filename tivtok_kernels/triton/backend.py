"""Triton backend: one varlen pass for every scope, forward and backward, on NVIDIA GPUs (docs/kernels/).

Importing this module does not import triton; the first question about it does.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from tivtok_kernels.problem import Call, Direction, Preparation, Problem
from tivtok_kernels.tensors import gpu_limit


def why_not(problem: Problem) -> str | None:
    try:
        interpreted = _is_interpreted()
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    device = problem.device
    if device.type not in ("cpu", "cuda"):
        return f"it runs on NVIDIA GPUs, not on {device.type} tensors"
    if problem.dtype == torch.float64:
        return "it has no float64 kernels"
    if problem.head_dim is not None and (problem.head_dim % 8 or problem.head_dim > 256):
        return f"head_dim must be a multiple of 8 up to 256, got {problem.head_dim}"
    if interpreted:
        return _interpreter_limit(problem.dtype)
    if device.type == "cpu":
        return "CPU tensors need triton's interpreter: set TRITON_INTERPRET=1 before triton is imported"
    return gpu_limit(device)


def plan_call(call: Call, direction: Direction) -> None:
    with torch.cuda.device_of(call.q):
        _module("launch").plan_call(call, direction)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(call.q):  # triton launches on the current device
        return _module("launch").forward(call)


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    with torch.cuda.device_of(call.q):
        return _module("launch").backward(call, out, lse, dout, dlse)


def prepare_qk(call: Preparation) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(call.qk):
        return _module("prepare").forward(call)


def prepare_qk_backward(call: Preparation, dq: Tensor, dk: Tensor) -> list[Tensor]:
    with torch.cuda.device_of(call.qk):
        return _module("prepare").backward(call, dq, dk)


def compile_errors() -> tuple[type[Exception], ...]:
    from triton.errors import TritonError  # of the compiler, of ptxas, and of kernels too large for the GPU

    return (TritonError,)


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"tivtok_kernels.triton.{name}")


@cache
def _is_interpreted() -> bool:
    """Whether the kernels were defined under TRITON_INTERPRET=1, which decides once and for all how they run."""
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(_module("launch").forward_kernel, InterpretedFunction)


def _interpreter_limit(dtype: torch.dtype | None) -> str | None:
    if dtype == torch.bfloat16:
        return "triton's interpreter multiplies bfloat16 matrices as if they were integers; float16 works there"
    return None
