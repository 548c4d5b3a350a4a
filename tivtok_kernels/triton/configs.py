"""Tile choices of the Triton kernels: one table, one row per (architecture, head_dim, math, pass), reasons beside.

No row was ever timed. They were chosen from what the compiler makes of them (registers, spills, shared memory,
asynchronous copies, tensor-core instructions), by the pipe model of ``python -m benchmarks.machine_code``, and by the
rows that tiles waste or read again. What ``python -m tivtok_kernels.tune`` found faster on a device takes the place of
its row there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from tivtok_kernels import measured

Pass = Literal["forward", "dkdv", "dq"]
Math = Literal["half", "tf32", "ieee"]

_REGISTERS = 1 << 16  # of an SM

INTERPRETER = 0  # the "architecture" of CPU tensors under TRITON_INTERPRET=1


class Key(NamedTuple):
    """What a row serves. ``arch`` as in sm_NN; ``head_dim`` is the largest one, after padding to a power of two."""

    arch: int
    head_dim: int
    math: Math
    kernel: Pass


class Config(NamedTuple):
    """Attributes:

    block_q, block_k: query and key rows per tile; a program owns one of the two and steps through the other.
    warps: per program.
    stages: of the loop over full tiles.
    per_sm: programs that fit on one SM; it also bounds their registers, see `options`.
    short_q: forward only: height of a tile whose rows fit into it, 0 for none. Frames are 8, 32 or 64 rows longer than
        1024: at a height of 128 alone, the last tile of each would waste 6 to 12 % of the work.
    """

    block_q: int
    block_k: int
    warps: int
    stages: int
    per_sm: int
    short_q: int = 0

    @property
    def options(self) -> dict[str, int]:
        """Launch options. All registers that ``per_sm`` programs leave one another may be used: left to itself, ptxas
        spills a few of them to fit one program more."""
        registers = _REGISTERS // (self.per_sm * self.warps * 32) // 8 * 8
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": min(registers, 255)}


# fmt: off
_ROWS: tuple[tuple[tuple[int, ...], int, Math, Pass, Config], ...] = (
    # A tile of 128 query rows reads K and V half as often as one of 64, which at the full matrix rate of sm_90 would
    # ask L2 for 64 bytes per clock and SM; two blocks per SM cover each other's softmax.
    ((90,), 64, "half", "forward", Config(128, 64, 4, 2, 2, 64)),
    ((100,), 64, "half", "forward", Config(64, 128, 4, 2, 2)),  # 128 x 64 spills
    ((80, 86), 64, "half", "forward", Config(64, 64, 4, 2, 2)),  # 128 x 64 spills, and 64 x 128 with triton 3.6
    # 64 keys per step would read as much of Q from shared memory for half of the products.
    ((90,), 128, "half", "forward", Config(128, 128, 8, 2, 1, 64)),
    ((100,), 128, "half", "forward", Config(128, 128, 8, 2, 1)),  # accumulators live in tensor memory
    ((80,), 128, "half", "forward", Config(64, 64, 4, 2, 2)),  # 128 x 64 with 8 warps spills
    ((86,), 128, "half", "forward", Config(64, 64, 8, 2, 1)),  # a second block would not fit beside it
    ((80, 100), 256, "half", "forward", Config(64, 64, 8, 2, 1)),  # 128 rows spill
    ((90,), 256, "half", "forward", Config(128, 32, 8, 2, 1)),  # 64 x 64 does half of its work twice and spills
    ((86,), 256, "half", "forward", Config(64, 32, 8, 2, 1)),  # 99 KiB of shared memory

    ((90, 100), 64, "half", "dkdv", Config(64, 64, 4, 2, 2)),  # 128 x 128 spills; small tiles waste less
    ((80, 86), 64, "half", "dkdv", Config(64, 128, 8, 2, 1)),  # 64 x 64 with 4 warps spills
    ((90,), 128, "half", "dkdv", Config(32, 64, 4, 2, 2)),  # 64 x 128 spills
    ((100,), 128, "half", "dkdv", Config(64, 128, 8, 2, 1)),
    ((80, 86), 128, "half", "dkdv", Config(64, 64, 8, 2, 1)),  # 64 x 128 spills
    ((90,), 256, "half", "dkdv", Config(32, 32, 8, 2, 1)),  # mma: the 64 rows that wgmma needs spill
    ((80, 100), 256, "half", "dkdv", Config(32, 64, 8, 2, 1)),
    ((86,), 256, "half", "dkdv", Config(32, 32, 8, 2, 1)),  # 99 KiB of shared memory

    ((90,), 64, "half", "dq", Config(64, 64, 4, 2, 3)),  # three blocks per SM
    ((86,), 64, "half", "dq", Config(64, 32, 4, 2, 2)),  # 64 x 64 spills
    ((100,), 64, "half", "dq", Config(128, 64, 4, 2, 2)),
    ((80,), 64, "half", "dq", Config(64, 32, 4, 2, 3)),  # 64 x 64 spills
    ((80, 90), 128, "half", "dq", Config(64, 64, 4, 2, 2)),
    ((100,), 128, "half", "dq", Config(128, 64, 8, 2, 1)),  # 64 x 64 with 4 warps spills
    ((86,), 128, "half", "dq", Config(64, 64, 4, 2, 1)),
    ((90,), 256, "half", "dq", Config(128, 32, 8, 2, 1)),  # the one tile with wgmma that does not spill
    ((80,), 256, "half", "dq", Config(64, 64, 8, 2, 1)),
    ((86,), 256, "half", "dq", Config(32, 16, 4, 2, 1)),  # 99 KiB of shared memory
    ((100,), 256, "half", "dq", Config(128, 32, 8, 2, 1)),

    # TF32: wgmma takes both operands along the summed dimension, so V and dO pass through registers there.
    ((80,), 64, "tf32", "forward", Config(64, 64, 4, 2, 1)),
    ((90, 100), 64, "tf32", "forward", Config(64, 32, 4, 2, 2)),  # 64 x 64 spills
    ((86,), 64, "tf32", "forward", Config(64, 32, 4, 2, 1)),  # 64 x 64 spills
    ((80,), 128, "tf32", "forward", Config(64, 32, 4, 2, 1)),
    ((90, 100), 128, "tf32", "forward", Config(64, 16, 4, 2, 1)),  # 64 x 32 spills
    ((86,), 128, "tf32", "forward", Config(32, 32, 8, 2, 1)),  # 64 rows spill
    ((80, 90, 100), 256, "tf32", "forward", Config(32, 32, 8, 2, 1)),  # mma on all: 64 rows spill
    ((86,), 256, "tf32", "forward", Config(32, 16, 8, 2, 1)),  # 99 KiB of shared memory
    ((90,), 64, "tf32", "dkdv", Config(32, 64, 4, 2, 2)),  # 64 x 64 spills with triton 3.6
    ((100,), 64, "tf32", "dkdv", Config(64, 64, 8, 2, 1)),
    ((80, 86), 64, "tf32", "dkdv", Config(32, 32, 4, 2, 2)),  # 64 rows spill
    ((80, 86, 90, 100), 128, "tf32", "dkdv", Config(32, 32, 8, 2, 1)),  # mma on all: 64 rows spill
    ((80, 86, 90, 100), 256, "tf32", "dkdv", Config(16, 16, 8, 2, 1)),
    ((90, 100), 64, "tf32", "dq", Config(64, 64, 8, 2, 1)),
    ((80, 86), 64, "tf32", "dq", Config(32, 32, 8, 2, 1)),
    ((80, 100), 128, "tf32", "dq", Config(64, 32, 8, 2, 1)),
    ((86, 90), 128, "tf32", "dq", Config(32, 32, 8, 2, 1)),  # 64 x 32 spills on sm_90 with triton 3.6
    ((80, 90, 100), 256, "tf32", "dq", Config(32, 16, 8, 2, 1)),
    ((86,), 256, "tf32", "dq", Config(16, 16, 8, 1, 1)),  # 99 KiB of shared memory

    # IEEE products run on the FMA units, fully unrolled: larger tiles spill, and so do two stages at 256.
    ((80, 86, 90, 100), 64, "ieee", "forward", Config(32, 32, 8, 2, 1)),
    ((80, 86, 90, 100), 128, "ieee", "forward", Config(16, 16, 8, 2, 1)),
    ((80, 86, 90, 100), 256, "ieee", "forward", Config(32, 16, 8, 1, 1)),
    ((80, 86, 90, 100), 64, "ieee", "dkdv", Config(32, 16, 8, 2, 1)),
    ((80, 86, 90, 100), 128, "ieee", "dkdv", Config(16, 16, 8, 2, 1)),
    ((80, 86, 90, 100), 256, "ieee", "dkdv", Config(16, 16, 8, 1, 1)),
    ((80, 86, 90, 100), 64, "ieee", "dq", Config(32, 16, 8, 2, 1)),
    ((80, 86, 90, 100), 128, "ieee", "dq", Config(16, 16, 8, 2, 1)),
    ((80, 90, 100), 256, "ieee", "dq", Config(32, 16, 8, 1, 1)),
    ((86,), 256, "ieee", "dq", Config(16, 16, 16, 1, 1)),  # 32 rows spill with triton 3.6
)
# fmt: on

TABLE: dict[Key, Config] = {
    Key(arch, head_dim, math, kernel): config for archs, head_dim, math, kernel, config in _ROWS for arch in archs
}

_INTERPRETED = Config(64, 64, 4, 1, 1)  # tiles that numpy is quick with

# What `instead` has put in place of rows.
_tried: dict[Key, Config] = {}


@lru_cache(maxsize=256)
def select(kernel: Pass, device: torch.device, head_dim: int, math: Math) -> Config:
    """What was measured to be the fastest tile on this device, else the row of the table."""
    key = key_of(kernel, device, head_dim, math)
    if key in _tried:
        return _tried[key]
    question = measured.tile_question(key.kernel, key.arch, key.head_dim, key.math)
    for name in measured.fastest(device, question, of_version="triton")[:1]:
        return named(name)
    return row(key)


def row(key: Key) -> Config:
    """The tile of the table, whatever was measured."""
    return _INTERPRETED if key.arch == INTERPRETER else TABLE[key]


def key_of(kernel: Pass, device: torch.device, head_dim: int, math: Math) -> Key:
    """The key of the smallest class of head dimensions that holds ``head_dim``."""
    for largest in (64, 128, 256):
        if head_dim <= largest:
            return Key(architecture(device), largest, math, kernel)
    raise ValueError(f"head_dim must be at most 256, got {head_dim}")


@contextmanager
def instead(key: Key, config: Config) -> Iterator[None]:
    """Inside, kernels run with ``config`` in place of what `select` would find for ``key``."""
    _tried[key] = config
    select.cache_clear()
    try:
        yield
    finally:
        del _tried[key]
        select.cache_clear()


def name_of(config: Config) -> str:
    """A tile in a record: "128x64 warps 4 stages 2 per-sm 2 short 64"."""
    block_q, block_k, warps, stages, per_sm, short_q = config
    return f"{block_q}x{block_k} warps {warps} stages {stages} per-sm {per_sm} short {short_q}"


def named(name: str) -> Config:
    """The inverse of `name_of`.

    Raises:
        ValueError: it is not such a name.
    """
    found = re.fullmatch(r"(\d+)x(\d+) warps (\d+) stages (\d+) per-sm (\d+) short (\d+)", name)
    if found is None:
        raise ValueError(f'a tile must be named like "128x64 warps 4 stages 2 per-sm 2 short 64", got {name!r}')
    return Config(*map(int, found.groups()))


def neighbours(kernel: Pass, config: Config) -> list[Config]:
    """Tiles that differ from ``config`` in one respect: half or twice a side, warps, stages, programs per SM."""
    found = [config._replace(block_q=n) for n in (config.block_q // 2, config.block_q * 2)]
    found += [config._replace(block_k=n) for n in (config.block_k // 2, config.block_k * 2)]
    found += [config._replace(warps=n) for n in (4, 8)]
    found += [config._replace(stages=config.stages + n) for n in (-1, 1)]
    found += [config._replace(per_sm=config.per_sm + n) for n in (-1, 1)]
    if kernel == "forward":
        found.append(config._replace(short_q=0 if config.short_q else config.block_q // 2))
    fitting = [c._replace(short_q=c.short_q if c.short_q < c.block_q else 0) for c in found]
    return [c for c in dict.fromkeys(fitting) if c != config and _is_possible(c)]


def _is_possible(config: Config) -> bool:
    sides = all(16 <= n <= 256 for n in (config.block_q, config.block_k, config.short_q or 16))
    return sides and 1 <= config.stages <= 4 and 1 <= config.per_sm <= 4


@lru_cache(maxsize=64)
def architecture(device: torch.device) -> int:
    """The column of the table for a device: sm_86 stands for all that have its small shared memory."""
    if device.type == "cpu":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return {(8, 0): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}.get((major, minor), 86)


@lru_cache(maxsize=256)
def workers(device: torch.device, config: Config) -> int:
    """Programs that the device runs at a time."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count * config.per_sm


def padded(head_dim: int) -> int:
    """The power of two that blocks of ``head_dim`` columns are padded to."""
    return max(16, 1 << (head_dim - 1).bit_length())
