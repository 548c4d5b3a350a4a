"""Registers of asynchronous matrix products (HGMMA), read from machine code: what is in flight, nobody else may touch.

A warpgroup's products read and write registers while the warps go on. PTX asks for a fence (in SASS WARPGROUP.ARRIVE)
between the last other write of such a register and the product, and for a wait (WARPGROUP.DEPBAR) between the product
and the next use. ptxas keeps to it or serialises; this checks that it did, on every path through the code:

- a product comes after an ARRIVE that no DEPBAR follows;
- its accumulators and its left operand, where that lies in registers, are not written between ARRIVE and product;
- nothing but a product into the same accumulators touches them before a DEPBAR that covers their group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.machine_code.sass import Instruction, product

Registers = frozenset[int]
NONE: Registers = frozenset()

_ENDS = ("EXIT", "RET")
_REGISTER = re.compile(r"(?<![A-Z])R(\d+)(\.64)?")
_STORES = ("ST", "STS", "STG", "STL", "STSM", "RED")  # they write no register


class Flight(NamedTuple):
    """Products in flight.

    Attributes:
        armed: an ARRIVE has come, and no DEPBAR after it.
        joins: where threads that a branch parted meet again, by the barrier's name.
        groups: registers of each committed group, the oldest first; open: of the one that is not committed yet.
        sums: of these registers the accumulators.
    """

    armed: bool
    groups: tuple[Registers, ...]
    open: Registers
    sums: Registers
    joins: frozenset[tuple[str, int]] = frozenset()

    @property
    def live(self) -> Registers:
        return NONE.union(*self.groups, self.open)


class Hgmma(NamedTuple):
    """The registers of a product: accumulators, left operand, whether it adds to what was there, whether it commits."""

    sums: Registers
    left: Registers
    adds: bool
    commits: bool


def hazards(code: Sequence[Instruction]) -> list[str]:
    """One line for each hazard in a function; none for code without HGMMA.

    Raises:
        ValueError: a jump to where no instruction is, or to an address in a register.
    """
    products = {n: hgmma(i) for n, i in enumerate(code) if i.name == "HGMMA"}
    if not products:
        return []
    watched = NONE.union(*(p.sums | p.left for p in products.values()))
    touched, written_by = ([of(i) & watched for i in code] for of in (registers, targets))
    place = {instruction.address: i for i, instruction in enumerate(code)}
    joins = {n: (i.operands.split(",")[0], _target(i, place)) for n, i in enumerate(code) if i.name == "BSSY"}
    followers = [list(_followers(code, i, place)) for i in range(len(code))]
    found: dict[str, None] = {}
    seen: dict[tuple[int, Flight], Registers] = {}
    todo: list[tuple[int, Flight, Registers]] = [(0, Flight(False, (), NONE, NONE), NONE)]
    while todo:
        i, flight, written = todo.pop()
        before = seen.get((i, flight))
        if before is not None and written <= before:
            continue
        seen[i, flight] = written = written | (before or NONE)
        if i in products:
            after, lines = _product(products[i], flight, written)
        elif code[i].name == "WARPGROUP":
            after, lines = _fence(code[i], flight), []
            written = NONE if after.armed else written
        else:
            after, hit = flight, touched[i] & flight.live
            if i in joins:
                others = frozenset(join for join in flight.joins if join[0] != joins[i][0])
                after = flight._replace(joins=others | {joins[i]})
            lines = [f"touches {_names(hit)} in flight"] if hit else []
            written |= written_by[i]
        found |= dict.fromkeys(f"{code[i].address:#06x} {code[i].opcode}: {line}" for line in lines)
        meet = [at for name, at in flight.joins if (code[i].name, code[i].operands) == ("BSYNC", name)]
        todo += [(follower, after, written) for follower in (*followers[i], *meet)]
    return list(found)


def _fence(i: Instruction, flight: Flight) -> Flight:
    """What is in flight after an ARRIVE or a DEPBAR."""
    if i.opcode == "WARPGROUP.ARRIVE":
        return flight._replace(armed=True)
    if i.opcode != "WARPGROUP.DEPBAR.LE":
        raise ValueError(f"expected ARRIVE or DEPBAR.LE of a warpgroup, got {i.opcode}")
    left = int(i.operands.split(",")[1], 16)
    groups = flight.groups[max(0, len(flight.groups) - left) :]
    sums = flight.sums & NONE.union(*groups, flight.open)
    return flight._replace(armed=False, groups=groups, sums=sums)


def _product(this: Hgmma, flight: Flight, written: Registers) -> tuple[Flight, list[str]]:
    reads = this.left | (this.sums if this.adds else NONE)
    lines = [] if flight.armed else ["no ARRIVE before it"]
    if late := reads & written:
        lines.append(f"{_names(late)} written after ARRIVE")
    if hit := this.sums & (flight.live - flight.sums) | this.left & flight.sums:
        lines.append(f"{_names(hit)} of another product in flight")
    everything, sums = flight.open | this.sums | this.left, flight.sums | this.sums
    if this.commits:
        return flight._replace(groups=(*flight.groups, everything), open=NONE, sums=sums), lines
    return flight._replace(open=everything, sums=sums), lines


def hgmma(i: Instruction) -> Hgmma:
    """Read "R24, R4, gdesc[UR8], R24, gsb0": accumulators, left operand if in registers, what they are added to."""
    shape = product(i)
    if shape is None:
        raise ValueError(f"expected an HGMMA that names its shape, got {i.opcode} {i.operands}")
    operands = [operand.strip() for operand in i.operands.split(",")]
    first = _register(operands[0])
    left = operands[1] if operands[1].startswith("R") else None
    sums = frozenset(range(first, first + shape.n // 2))
    return Hgmma(
        sums,
        frozenset(range(_register(left), _register(left) + 4)) if left else NONE,
        "RZ" not in operands[1:] and "!UPT" not in operands,
        any(operand.startswith("gsb") for operand in operands),
    )


def registers(i: Instruction) -> Registers:
    """All that an instruction reads or writes, wide operands in full."""
    named = frozenset(
        n for first, wide in _REGISTER.findall(i.operands) for n in range(int(first), int(first) + (2 if wide else 1))
    )
    return named | targets(i) | _stored(i)


def targets(i: Instruction) -> Registers:
    """All that it writes."""
    first = _REGISTER.match(i.operands)
    if first is None or i.name in _STORES:
        return NONE
    return frozenset(range(int(first[1]), int(first[1]) + _width(i)))


def _stored(i: Instruction) -> Registers:
    """What a store reads: as many registers as it says, from its last operand on."""
    last = re.search(r"(?<![A-Z])R(\d+)$", i.operands)
    if i.name not in _STORES or last is None:
        return NONE
    return frozenset(range(int(last[1]), int(last[1]) + _width(i)))


def _width(i: Instruction) -> int:
    """Registers of the operand that gives an instruction its width."""
    suffixes = i.opcode.split(".")
    if i.name in ("LDSM", "STSM"):
        return next((int(s) for s in suffixes if s in ("2", "4")), 1)
    if i.opcode.startswith(("IMAD.WIDE", "HMMA")):
        return 4 if i.name == "HMMA" else 2
    return 4 if "128" in suffixes else 2 if "64" in suffixes else 1


def _followers(code: Sequence[Instruction], i: int, place: dict[int, int]) -> Iterator[int]:
    """Where control may go, but for BSYNC: a jump that a predicate may skip goes on as well, and every other one might
    have one."""
    instruction = code[i]
    if instruction.name in ("BRX", "JMX"):
        raise ValueError(f"{instruction.address:#06x} jumps to an address in a register")
    if instruction.name in ("BRA", "CALL", "JMP"):
        yield _target(instruction, place)
    sure = not instruction.predicate and "," not in instruction.operands and "." not in instruction.opcode
    ends = (instruction.name in _ENDS and not instruction.predicate) or (instruction.name in ("BRA", "JMP") and sure)
    if not ends and i + 1 < len(code):
        yield i + 1


def _target(i: Instruction, place: dict[int, int]) -> int:
    found = re.search(r"0x([0-9a-f]+)$", i.operands)
    if found is None or int(found[1], 16) not in place:
        raise ValueError(f"{i.address:#06x} {i.opcode} {i.operands} must name an instruction to go to")
    return place[int(found[1], 16)]


def _register(operand: str) -> int:
    found = re.match(r"R(\d+)", operand)
    if found is None:
        raise ValueError(f"expected a register, got {operand!r}")
    return int(found[1])


def _names(numbers: Registers) -> str:
    ordered = sorted(numbers)
    return ", ".join(f"R{n}" for n in ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")
