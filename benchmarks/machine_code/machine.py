"""What one SM of each architecture offers, and how many blocks of a kernel fit on it (CUDA programming guide, 5.2)."""

from __future__ import annotations

from typing import NamedTuple


class Machine(NamedTuple):
    """Limits of one SM. All have 65536 registers, and each block loses 1 KiB of shared memory to the system."""

    shared: int  # bytes
    shared_per_block: int
    threads: int
    blocks: int
    tensor_columns: int = 0  # of tensor memory


MACHINES = {
    80: Machine(164 << 10, 163 << 10, 2048, 32),
    86: Machine(100 << 10, 99 << 10, 1536, 16),
    90: Machine(228 << 10, 227 << 10, 2048, 32),
    100: Machine(228 << 10, 227 << 10, 2048, 32, tensor_columns=512),
}

_REGISTERS = 1 << 16
_REGISTERS_PER_ALLOCATION = 256  # of a warp
_RESERVED_SHARED = 1 << 10  # per block


def blocks_per_sm(arch: int, registers: int, warps: int, shared: int, tensor_columns: int = 0) -> int:
    """Blocks of ``warps`` warps on one SM; 0 where not even one fits.

    Args:
        registers: per thread.
        shared: bytes per block, without those the system takes.
        tensor_columns: of tensor memory, per block.
    """
    machine = MACHINES[arch]
    if shared > machine.shared_per_block:
        return 0
    per_warp = -(-registers * 32 // _REGISTERS_PER_ALLOCATION) * _REGISTERS_PER_ALLOCATION
    limits = [
        _REGISTERS // (per_warp * warps),
        machine.shared // (shared + _RESERVED_SHARED),
        machine.threads // (32 * warps),
        machine.blocks,
    ]
    if tensor_columns:
        limits.append(machine.tensor_columns // tensor_columns)
    return min(limits)
