"""Reading NVIDIA machine code (SASS): instructions, loops, and what of them the report counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?(\S+)\s*([^;]*?)\s*;", re.MULTILINE)
_HGMMA = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)\.\w+(?:\.(\w+))?")
_HMMA = re.compile(r"HMMA\.(\d\d)(\d)(\d+)\.\w+(?:\.(\w+))?")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) ")


class Instruction(NamedTuple):
    """``opcode`` with all its suffixes ("HGMMA.64x128x16.F32.BF16"); ``operands`` as printed; ``predicate`` or ""."""

    address: int
    opcode: str
    operands: str
    predicate: str = ""

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]


class Product(NamedTuple):
    """What a matrix instruction computes: m x n x k operands of ``dtype``, shared by ``warps`` warps."""

    m: int
    n: int
    k: int
    dtype: str
    warps: int

    @property
    def flops(self) -> float:
        """Per warp."""
        return 2 * self.m * self.n * self.k / self.warps


class Counts(NamedTuple):
    """Instructions of a stretch of code, by what the report judges.

    Attributes:
        hgmma, hmma, tcgen05: matrix instructions of sm_90, of sm_80 (they run on all later ones), of sm_100.
        ldgsts, utmaldg: asynchronous copies to shared memory, by the thread and by the tile.
        ex2: exponentials.
        spill_loads, spill_stores: local memory, which is where registers that do not fit go.
    """

    instructions: int
    hgmma: int
    hmma: int
    tcgen05: int
    ldgsts: int
    utmaldg: int
    ex2: int
    spill_loads: int
    spill_stores: int

    @property
    def async_copies(self) -> int:
        return self.ldgsts + self.utmaldg


def parse(text: str) -> list[Instruction]:
    """The instructions of ``cuobjdump -sass`` output that holds one function."""
    found = _INSTRUCTION.findall(text)
    return [Instruction(int(at, 16), opcode, operands, predicate) for at, predicate, opcode, operands in found]


def parse_usage(text: str) -> tuple[int, int]:
    """(registers per thread, bytes of stack) from ``cuobjdump -res-usage`` output.

    Raises:
        ValueError: the text has no such line.
    """
    usage = _USAGE.search(text)
    if usage is None:
        raise ValueError("expected a line with REG: and STACK: from cuobjdump -res-usage, found none")
    return int(usage[1]), int(usage[2])


def count(code: Sequence[Instruction]) -> Counts:
    def matching(test: Callable[[Instruction], bool]) -> int:
        return sum(map(test, code))

    return Counts(
        instructions=len(code),
        hgmma=matching(lambda i: i.name == "HGMMA"),
        hmma=matching(lambda i: i.name == "HMMA"),
        tcgen05=matching(lambda i: i.name.startswith("UTC") and i.name.endswith("MMA")),
        ldgsts=matching(lambda i: i.name == "LDGSTS"),
        utmaldg=matching(lambda i: i.name == "UTMALDG"),
        ex2=exponentials(code),
        spill_loads=matching(lambda i: i.name == "LDL"),
        spill_stores=matching(lambda i: i.name == "STL"),
    )


def exponentials(code: Sequence[Instruction]) -> int:
    return sum(i.opcode == "MUFU.EX2" for i in code)


def loops(
    code: Sequence[Instruction], wanted: Callable[[Sequence[Instruction]], int] = exponentials
) -> list[list[Instruction]]:
    """The bodies of the innermost loops with exponentials, or with what is wanted of them, in order.

    A loop is the code from the target of a backward branch up to the branch. Waits that retry far away, behind the
    end of the kernel, jump back into the middle of a loop: they are none of their own.
    """
    branches = [(branch_target(i), i.address) for i in code]
    spans = sorted({(start, end) for start, end in branches if start is not None and start <= end})
    proper = [(s, e) for s, e in spans if not any(start < s <= end < e for start, end in spans)]
    bodies = {(s, e): [i for i in code if s <= i.address <= e] for s, e in proper}
    hot = {span: body for span, body in bodies.items() if wanted(body)}
    outer = {(s, e) for s, e in hot for start, end in hot if (s, e) != (start, end) and s <= start and end <= e}
    return [body for span, body in hot.items() if span not in outer]


def main_loop(code: Sequence[Instruction]) -> list[Instruction] | None:
    """The loop over full tiles of full height.

    Of the loops with (almost) the most exponentials, those with the most products (tiles of fewer rows have fewer), and
    of these the shortest (tails carry masks).
    """
    bodies = loops(code)
    most = max(map(exponentials, bodies), default=0)
    large = [body for body in bodies if exponentials(body) >= 0.9 * most]
    return min(large, key=lambda body: (-matrix_flops(body), len(body)), default=None)


def matrix_flops(code: Iterable[Instruction]) -> float:
    """FLOPs per warp of all HMMA and HGMMA instructions (tcgen05 instructions do not name their shape)."""
    return sum(p.flops for p in map(product, code) if p)


def product(instruction: Instruction) -> Product | None:
    """The shape of an HMMA or HGMMA instruction, None for any other."""
    if wgmma := _HGMMA.match(instruction.opcode):
        return Product(int(wgmma[1]), int(wgmma[2]), int(wgmma[3]), wgmma[4] or "F16", warps=4)
    if mma := _HMMA.match(instruction.opcode):
        return Product(int(mma[1]), int(mma[2]), int(mma[3]), mma[4] or "F16", warps=1)
    return None


def shared_widths(code: Iterable[Instruction]) -> list[int]:
    """Bytes that a thread moves in each instruction that goes through shared memory; a shuffle moves one register."""
    return [_width(i) for i in code if i.name in ("LDS", "STS", "LDSM", "STSM", "LDGSTS", "SHFL")]


def _width(instruction: Instruction) -> int:
    suffixes = instruction.opcode.split(".")[1:]
    if instruction.name in ("LDSM", "STSM"):  # matrices of 8 rows of 16 bytes: 4 bytes of each per thread
        return 4 * next((int(s) for s in suffixes if s in ("2", "4")), 1)
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((sizes[s] for s in suffixes if s in sizes), 4)


def branch_target(instruction: Instruction) -> int | None:
    """Where a branch goes, None for any other instruction."""
    if instruction.name != "BRA":
        return None
    target = re.search(r"0x([0-9a-f]+)", instruction.operands)
    return int(target[1], 16) if target else None
