"""A model, not a measurement: the cycles that one step of a main loop keeps each pipe of an sm_90 SM busy.

Minima, maxima, integers and conversions really run at half of `LANES`, and mma.sync below the peak of wgmma: the model
leaves both out, so it flatters loops that are full of them.

Every pipe works at its peak rate and instructions wait for nothing. `Pipes.overlapped` takes the pipes to run side by
side (no kernel beats it), `Pipes.serial` one after the other (what a single block per SM without any overlap would
do). Real kernels lie between the two; only a clock says where.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.machine_code import sass
from benchmarks.machine_code.sass import Instruction

ARCH = 90  # the only one whose rates stand here
SMS = 132  # of an H100 or H200 SXM
GIGAHERTZ = 1.755

# Per clock and SM.
MMA_FLOPS = {"F16": 4096, "BF16": 4096, "TF32": 2048}
EXPONENTIALS = 16
LANES = 128  # of FMA and ALU pipes, and the rate at which threads are issued anything at all
SHARED_BYTES = 128

_WARP = 32


class Pipes(NamedTuple):
    """Cycles per step of one block. ``arithmetic`` is everything that is not on one of the other pipes."""

    tensor: float
    exponentials: float
    arithmetic: float
    shared: float

    @property
    def overlapped(self) -> float:
        return max(self)

    @property
    def serial(self) -> float:
        return sum(self)


def pipes(loop: Sequence[Instruction], warps: int) -> Pipes:
    """The model for a loop body that each of ``warps`` warps runs once per step."""
    mufu = sum(i.name == "MUFU" for i in loop)
    matrix = sum(i.name in ("HGMMA", "HMMA") for i in loop)
    shared = sass.shared_widths(loop)
    products = filter(None, map(sass.product, loop))
    return Pipes(
        tensor=sum(p.flops / MMA_FLOPS[p.dtype] for p in products) * warps,
        exponentials=mufu * warps * _WARP / EXPONENTIALS,
        arithmetic=(len(loop) - mufu - matrix - len(shared)) * warps * _WARP / LANES,
        shared=(sum(shared) * warps * _WARP + sum(operand_bytes(i, warps) for i in loop)) / SHARED_BYTES,
    )


def tflops(flops: float, cycles: float) -> float:
    """TFLOP/s of the whole GPU if ``flops`` take an SM ``cycles``."""
    return flops / cycles * SMS * GIGAHERTZ / 1e3


def operand_bytes(instruction: Instruction, warps: int) -> float:
    """What an HGMMA of a block reads from shared memory: its right operand, and the left one if not in registers."""
    product = sass.product(instruction)
    if product is None or instruction.name != "HGMMA":
        return 0.0
    element = 4 if product.dtype == "TF32" else 2
    left_in_registers = re.match(r"R\d+, R\d+", instruction.operands) is not None
    elements = product.n * product.k + (0 if left_in_registers else product.m * product.k)
    return elements * element * warps / product.warps
