"""What backends share about tensors: the dtypes they take, the dtype they accumulate in, addresses they can read."""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor

from tivtok_kernels.caching import constant_when_compiled

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Elements that strides are multiples of: 16 bytes of a 16-bit dtype.
STRIDE_UNIT = 8


def check_dtype(name: str, x: Tensor) -> None:
    """Raises:
    TypeError: x is of none of `DTYPES`.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")


def is_autocast_on(device: str) -> bool:
    """Whether autocast is on for tensors of this type of device."""
    return _has_autocast(device) and torch.is_autocast_enabled(device)


@constant_when_compiled
def _has_autocast(device: str) -> bool:
    """Whether autocast knows the type. torch.compile of torch 2.11 cannot trace the question."""
    return torch.amp.is_autocast_available(device)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, softmax and LSE: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def aligned(
    x: Tensor, *, expanded: bool = True, max_row_stride: int = sys.maxsize, max_head_stride: int = sys.maxsize
) -> Tensor:
    """x (rows, heads, head_dim) itself if every row of a head starts on a 16-byte boundary, else a contiguous copy.

    Args:
        expanded: strides of 0 are fine too.
        max_row_stride, max_head_stride: strides, in elements, from which on kernels cannot address them.
    """
    rows, heads, _ = x.shape
    row, head, element = x.stride()
    fits = element == 1 and x.data_ptr() % 16 == 0
    fits &= rows == 1 or (row % STRIDE_UNIT == 0 and (row > 0 or expanded) and row < max_row_stride)
    fits &= heads == 1 or (head % STRIDE_UNIT == 0 and (head > 0 or expanded) and head < max_head_stride)
    return x if fits else x.clone(memory_format=torch.contiguous_format)


@cache
def gpu_limit(device: torch.device) -> str | None:
    """Why kernels written for NVIDIA GPUs since Ampere cannot run on ``device``, None if they can."""
    if torch.version.hip is not None:
        return "its kernels were written and checked for NVIDIA GPUs, not for AMD's"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 or newer, {torch.cuda.get_device_name(device)} has {major}.{minor}"
    return None
