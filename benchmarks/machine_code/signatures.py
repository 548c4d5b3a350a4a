"""Signatures of kernels for compilers that see no tensors: argument types, constants, options.

`launch` arrives at the same by calling; tests/benchmarks/test_machine_code.py holds the two against each other.
"""

from __future__ import annotations

import inspect
from typing import Literal, NamedTuple

from triton.runtime.jit import KernelInterface

from tivtok_kernels.triton import backward, combine, configs, forward, launch, prepare
from tivtok_kernels.triton.configs import Config
from tivtok_kernels.triton.launch import Shape

Kernel = Literal[
    "forward", "dkdv", "dq", "delta", "merge_outputs", "sum_gradients", "prepare_qk", "prepare_qk_backward"
]

FUNCTIONS: dict[Kernel, KernelInterface] = {
    "forward": forward.forward_kernel,
    "dkdv": backward.key_gradient_kernel,
    "dq": backward.query_gradient_kernel,
    "delta": backward.delta_kernel,
    "merge_outputs": combine.merge_outputs_kernel,
    "sum_gradients": combine.sum_gradients_kernel,
    "prepare_qk": prepare.prepare_qk_kernel,
    "prepare_qk_backward": prepare.prepare_qk_backward_kernel,
}

# Arguments whose type does not follow that of the tensors; other names in capitals do, other names are integers.
_TYPES = {
    **dict.fromkeys(("TILES", "MERGES"), "*i32"),
    **dict.fromkeys(("LSE", "DLSE", "LSE2", "DELTA"), "*fp32"),
    **dict.fromkeys(("PART", "PART_OUT", "PART_LSE", "PART_DQ", "PART_DK", "PART_DV", "PART_DWEIGHT"), "*fp32"),
    **dict.fromkeys(("COS", "SIN", "Q_WEIGHT", "K_WEIGHT"), "*fp32"),
    **dict.fromkeys(("scale", "eps"), "fp32"),
}


class Build(NamedTuple):
    """All that a compiler wants beside the target. Every pointer may be taken to be aligned to 16 bytes."""

    function: KernelInterface
    signature: dict[str, str]
    constants: dict[str, object]
    options: dict[str, object]


def build(kernel: Kernel, shape: Shape, config: Config) -> Build:
    """``config`` is a row of the table for kernels that are a pass of their own, and of any pass for their helpers."""
    function = FUNCTIONS[kernel]
    element = "bf16" if shape.math == "half" else "fp32"
    parameters = inspect.signature(function.fn).parameters.values()
    signature = {
        p.name: "constexpr" if "constexpr" in str(p.annotation) else _type(p.name, element) for p in parameters
    }
    options: dict[str, object] = {"enable_fp_fusion": True}
    match kernel:
        case "forward" | "dkdv" | "dq":
            constants = launch.constants(kernel, shape, config)
            options |= config.options
        case "delta":
            padded = configs.padded(shape.head_dim)
            constants = {"D": shape.head_dim, "BLOCK_D": padded, "ROWS": backward.DELTA_ROWS, "HAS_DLSE": True}
        case "merge_outputs" | "sum_gradients":
            constants = launch.merge_constants(shape, config.block_q)
        case "prepare_qk":
            constants = {**prepare.constants(shape.head_dim, prepare.ELEMENTS, norm=True, rotate=True)}
            options |= prepare.OPTIONS
        case "prepare_qk_backward":
            elements = prepare.BACKWARD_BYTES // (2 if shape.math == "half" else 4)
            constants = {**prepare.constants(shape.head_dim, elements, norm=True, rotate=True)}
            options |= prepare.OPTIONS
    return Build(function, signature, constants, options)


def _type(name: str, element: str) -> str:
    return _TYPES.get(name, f"*{element}" if name.isupper() else "i32")
