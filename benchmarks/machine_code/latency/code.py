"""One step of a main loop as the latency model reads it: the instructions of the way through it, with what ptxas wrote
beside each for the issue logic.

Every instruction of Volta and later carries 21 bits of schedule (arXiv 1804.06826, section 2.1; arXiv 2503.20481): the
clocks until its warp may issue the next one, which stand for all fixed latencies, and up to two of six scoreboards that
it holds until its result is there or its sources are read; a later instruction names the scoreboards it waits for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.machine_code import sass
from benchmarks.machine_code.sass import Instruction

_ENCODED = re.compile(r"/\*([0-9a-f]{4,})\*/[^;]*;\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x([0-9a-f]{16}) \*/")
_NONE = 7
_MOST_ROUNDS = 4  # of a loop within the loop


class Control(NamedTuple):
    """``write``, ``read``: the scoreboard held until the result is there, the sources are read; None for none."""

    stall: int = 1
    write: int | None = None
    read: int | None = None
    waits: tuple[int, ...] = ()


class Timed(NamedTuple):
    instruction: Instruction
    control: Control


def parse(text: str) -> list[Timed]:
    """The instructions of one function with their schedule, from ``cuobjdump -sass``.

    Raises:
        ValueError: the text does not show the encoding of every instruction.
    """
    controls = {int(at, 16): control(int(word, 16)) for at, word in _ENCODED.findall(text)}
    code = sass.parse(text)
    if missing := [i for i in code if i.address not in controls]:
        raise ValueError(f"expected the encoding of every instruction, found none of {missing[0].address:#06x}")
    return [Timed(i, controls[i.address]) for i in code]


def control(word: int) -> Control:
    """From the upper 64 of an instruction's 128 bits."""
    write, read, mask = word >> 46 & 7, word >> 49 & 7, word >> 52 & 63
    waits = tuple(board for board in range(6) if mask >> board & 1)
    return Control(word >> 41 & 15, None if write == _NONE else write, None if read == _NONE else read, waits)


def consumer_step(code: Sequence[Timed], flops: float) -> list[Timed]:
    """The way through the main loop in a full step: with the most products and waits, without masks.

    Args:
        flops: of a warp's products in that loop; a kernel may have several.

    Raises:
        ValueError: no loop with exponentials has as many.
    """
    loops = sass.loops([timed.instruction for timed in code])
    loop = min((body for body in loops if sass.matrix_flops(body) == flops), key=len, default=None)
    if loop is None:
        raise ValueError(f"expected a loop with exponentials and {flops:.0f} FLOPs per warp, found none")
    ways = _ways(code, loop[0].address, loop[-1].address)
    return min(ways, key=lambda way: (-_count(way, "HGMMA"), -_count(way, "SYNCS.PHASECHK"), len(way)))


def copier_step(code: Sequence[Timed], copies: int, smaller: int = 0) -> list[Timed]:
    """The way through the loop of a warp that copies, with so many copies of 16 bytes, and smaller ones, per thread and
    step.

    Raises:
        ValueError: no way through any loop has as many.
    """
    loops = sass.loops([timed.instruction for timed in code], lambda body: any(i.name == "LDGDEPBAR" for i in body))
    ways = [way for loop in loops for way in _ways(code, loop[0].address, loop[-1].address)]
    wanted = copies, copies + smaller
    fitting = [way for way in ways if (_count(way, _COPY), _count(way, "LDGSTS")) == wanted]
    if not fitting:
        raise ValueError(f"expected a way through a loop with {copies} copies and {smaller} smaller, found none")
    return min(fitting, key=lambda way: (-_count(way, "SYNCS"), -_count(way, "LDGSTS"), len(way)))


_COPY = "LDGSTS.E.BYPASS.128"


def _count(way: Sequence[Timed], opcode: str) -> int:
    return sum(timed.instruction.opcode.startswith(opcode) for timed in way)


def _ways(code: Sequence[Timed], first: int, last: int) -> Iterator[list[Timed]]:
    """All ways from the head of a loop to the branch back to it. Waits succeed at once: how long they take is what the
    simulation finds out."""
    place = {timed.instruction.address: n for n, timed in enumerate(code)}
    todo: list[tuple[int, list[Timed], dict[int, int]]] = [(place[first], [], {})]
    while todo:
        n, way, rounds = todo.pop()
        while True:
            timed = code[n]
            instruction = timed.instruction
            way.append(timed)
            if instruction.address == last:
                yield way
                break
            target = sass.branch_target(instruction)
            waited = n > 0 and code[n - 1].instruction.opcode.startswith("SYNCS.PHASECHK")
            n += 1
            if target is None or waited:
                continue
            inside = first < target <= last
            back = inside and target <= instruction.address
            if back and rounds.get(target, 0) >= _MOST_ROUNDS:
                inside = False
            if instruction.predicate or "P" in instruction.operands:
                if inside:
                    todo.append((place[target], [*way], rounds | {target: rounds.get(target, 0) + back}))
            elif inside:
                n = place[target]
            else:
                break
