"""The simulator: warps of one SM sub-partition issue their loops in order, side by side, against shared pipes.

An SM has four equal sub-partitions, and a warpgroup a warp in each; these run in step. So one sub-partition is
simulated, and what its warp does to a unit of the whole SM (shared memory, L2) counts four times. Whoever can issue
first does; of several, who has waited longest (hardware prefers the last one, arXiv 2503.20481, until ptxas has it
yield). Products of both warpgroups go through the tensor core in the order of issue. Barriers are known by step instead
of by phase: "keys 7" happens once, for all rings and parities.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import NamedTuple

from benchmarks.machine_code import sass
from benchmarks.machine_code.latency.code import Control, Timed
from benchmarks.machine_code.latency.figures import Machine
from benchmarks.machine_code.pipes import operand_bytes
from benchmarks.machine_code.sass import Instruction

_WARPS = 4  # of a warpgroup, and sub-partitions
_FMA = ("FFMA", "FMUL", "FADD")
_UNIFORM = ("R2UR", "S2UR", "UIADD3", "UIMAD", "ULDC", "ULEA", "ULOP3", "UMOV", "USEL", "USHF", "UISETP", "S2R", "LDC")
_PIPES = {"imad": "fma"}  # of those with a figure of their own
_KINDS = {
    "HGMMA": "product",
    "WARPGROUP.DEPBAR": "products",
    "LDGSTS": "copy",
    "LDGDEPBAR": "group",
    "DEPBAR": "copies",
    "SYNCS.PHASECHK": "wait",
    "SYNCS.ARRIVE": "arrive",
    "BAR.SYNC": "turn",
    "BAR.ARV": "pass",
    "MUFU": "mufu",
    "SHFL": "shuffle",
    "MEMBAR": "fence",
    "FENCE": "fence",
}
_NOWHERE = ("BAR", "BRA", "BSSY", "BSYNC", "NOP", "YIELD", "WARPSYNC", "WARPGROUP", "SYNCS", "HGMMA", "DEPBAR")

Event = tuple[str, int]  # a barrier and which step of it, counted from that of the loop


class Role(NamedTuple):
    """What the barriers in a loop mean: of each mbarrier wait and arrival, in order, the event, None where the step
    that is simulated leaves it out; of named barriers, whom they wait for and whom they let go on."""

    waits: tuple[Event, ...] = ()
    arrivals: tuple[Event | None, ...] = ()
    turn: str = ""
    passes: str = ""


class Load(NamedTuple):
    """A tile that TMA brings every step. ``event`` is its arrival; ``free`` tells that there is room for it, and then
    another loader signs ``also``."""

    event: str
    bytes: int
    free: Event
    also: str = ""


class Result(NamedTuple):
    """Of one step, in clocks: how long, the tensor core's part of it, and why each warp did not issue."""

    clocks: float
    tensor: float
    lost: dict[str, dict[str, float]]

    @property
    def share(self) -> float:
        """Of the tensor cores' peak."""
        return self.tensor / self.clocks


class Op(NamedTuple):
    """An instruction as it is simulated.

    Attributes:
        kind: what decides when it can issue and what it does to others; "" for arithmetic.
        figure, pipe: what says for how long it keeps its pipe busy, and the pipe; "" for none.
        size: bytes that a warpgroup moves through shared memory, operands of products included.
        flops: of a warpgroup's product.
        last: the product ends a group.
        left: groups that a wait leaves in flight.
    """

    kind: str
    control: Control
    figure: str
    pipe: str
    size: float
    flops: float
    last: bool
    left: int


@lru_cache(4096)
def op(timed: Timed) -> Op:
    instruction = timed.instruction
    figure, product = _figure(instruction), sass.product(instruction)
    size = _moved(instruction) * 32 * _WARPS + operand_bytes(instruction, _WARPS)
    left = int(instruction.operands.split(",")[1], 16) if "DEPBAR.LE" in instruction.opcode else 0
    flops = product.flops * _WARPS if product else 0
    last = "gsb" in instruction.operands
    return Op(_kind(instruction), timed.control, figure, _PIPES.get(figure, figure), size, flops, last, left)


def _kind(instruction: Instruction) -> str:
    return next((kind for opcode, kind in _KINDS.items() if instruction.opcode.startswith(opcode)), "")


def _figure(instruction: Instruction) -> str:
    if instruction.name in _NOWHERE:
        return ""
    if instruction.name == "MUFU":
        return "mufu"
    if instruction.opcode.startswith(_FMA):
        return "fma"
    if instruction.name == "IMAD":
        return "imad"
    if instruction.name in _UNIFORM:
        return "uniform"
    return "memory" if _moved(instruction) else "alu"


def _moved(instruction: Instruction) -> int:
    """Bytes that a thread moves through shared memory; none under a predicate that never holds."""
    return 0 if instruction.predicate == "!PT" else sum(sass.shared_widths([instruction]))


@dataclass
class Warp:
    name: str
    code: Sequence[Op]
    role: Role
    step: int = 0
    at: int = 0  # the next instruction
    waits: int = 0  # mbarrier waits and arrivals of this step that have been
    arrivals: int = 0
    ready: float = 0.0  # for the next instruction, by the stall of the last
    boards: list[float] = field(default_factory=lambda: [0.0] * 6)
    groups: list[float] = field(default_factory=list)  # when each group of products, or of copies, is done
    open: float = 0
    issued: float = 0.0  # when its last instruction was
    began: list[float] = field(default_factory=list)  # when each step did
    lost: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class Sm:
    """One sub-partition and what it shares. ``signers`` arrivals complete an event."""

    machine: Machine
    warps: list[Warp]
    signers: dict[str, int]
    loads: Sequence[Load] = ()
    happened: dict[Event, list[float]] = field(default_factory=lambda: defaultdict(list))
    turns: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    pipes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    begun: list[float] = field(default_factory=list)  # when each product entered the tensor core
    issue: float = 0  # when the next instruction can be
    loaded: int = 0

    def start(self, turn: str) -> None:
        """Lets the first of those who take turns go on, and tiles be loaded into empty memory."""
        self.turns[turn].append(0.0)
        self._load()

    def run(self, steps: int) -> Result:
        """The mean of the later half of so many steps.

        Raises:
            RuntimeError: everybody waits for ever.
        """
        half, lead = steps // 2, self.warps[0]
        before: list[dict[str, float]] = []
        while len(lead.began) <= steps:
            if not before and len(lead.began) > half:
                before = [warp.lost.copy() for warp in self.warps]
            choices = [(*self._when(warp), warp) for warp in self.warps]
            free, why, warp = min(choices, key=self._rank)
            if free == inf:
                raise RuntimeError(f"nobody can go on: {', '.join(f'{w.name}: {why}' for _, why, w in choices)}")
            when = max(free, self.issue)
            warp.lost[why] += free - warp.ready
            warp.lost["issue"] += when - free
            self._issue(warp, when)
        count = steps - half
        lost = {
            warp.name: {why: (clocks - old[why]) / count for why, clocks in warp.lost.items()}
            for warp, old in zip(self.warps, before, strict=True)
        }
        tensor = sum(op.flops for warp in self.warps for op in warp.code) / self.machine["tensor"]
        return Result((lead.began[steps] - lead.began[half]) / count, tensor, lost)

    def _rank(self, choice: tuple[float, str, Warp]) -> tuple[float, float]:
        when, _, warp = choice
        return max(when, self.issue), warp.issued

    def _when(self, warp: Warp) -> tuple[float, str]:
        """When a warp could issue its next instruction if it were alone to, and what for it has to wait until then."""
        op = warp.code[warp.at]
        when, why = warp.ready, "itself"
        for board in op.control.waits:
            if warp.boards[board] > when:
                when, why = warp.boards[board], "results"
        if op.pipe and self.pipes[op.pipe] > when:
            when, why = self.pipes[op.pipe], op.pipe
        match op.kind:
            case "wait":  # may be issued before, and has its answer when the event is there
                event, offset = warp.role.waits[warp.waits]
                other, reason = self._time(event, warp.step + offset) - self.machine["shared_latency"], event
            case "turn":
                passed = self.turns[warp.role.turn]
                other, reason = passed[0] if passed else inf, "turn"
            case "product" if len(self.begun) >= self.machine["queue"]:
                other, reason = self.begun[-int(self.machine["queue"])], "queue"
            case "products" | "copies":
                other, reason = max(warp.groups[: len(warp.groups) - op.left][-1:], default=0.0), op.kind
            case _:
                return when, why
        return (other, reason) if other > when else (when, why)

    def _time(self, event: str, step: int) -> float:
        """When an event has happened; those before the first step have."""
        times = self.happened[event, step]
        if step < 0:
            return 0.0
        return max(times) if len(times) >= self.signers.get(event, 1) else inf

    def _issue(self, warp: Warp, when: float) -> None:
        op = warp.code[warp.at]
        self.issue, warp.issued = when + 1, when
        if op.pipe:
            self.pipes[op.pipe] = when + self.machine[op.figure]
        done = self._effect(warp, op, when)
        write, read = op.control.write, op.control.read
        if write is not None:
            warp.boards[write] = max(warp.boards[write], done)
        if read is not None:
            warp.boards[read] = max(warp.boards[read], when + self.machine["read"])
        warp.ready = when + max(op.control.stall, 1)
        if warp.at == 0:
            warp.began.append(when)
        warp.at += 1
        if warp.at == len(warp.code):
            warp.at = warp.waits = warp.arrivals = 0
            warp.step += 1

    def _effect(self, warp: Warp, op: Op, when: float) -> float:
        """What an instruction does to all others; returns when its result is there."""
        figures = self.machine
        match op.kind:
            case "product":
                self._multiply(warp, op, when)
            case "copy":
                warp.open = max(warp.open, self._from_l2(when, op.size) + figures["l2_latency"])
            case "group":
                warp.groups.append(warp.open)
                warp.open = 0
            case "mufu":
                return when + figures["mufu_latency"]
            case "fence":
                return when + figures["fence"]
            case "wait":
                warp.waits += 1
            case "arrive":
                event = warp.role.arrivals[warp.arrivals]
                warp.arrivals += 1
                if event is not None:
                    self.happened[event[0], warp.step + event[1]].append(when + figures["barrier"])
                    self._load()
            case "turn":
                self.turns[warp.role.turn].pop(0)
            case "pass":
                self.turns[warp.role.passes].append(when + figures["barrier"])
            case _ if op.size:
                self._share(when, op.size)
                return when + figures["shuffle_latency" if op.kind == "shuffle" else "shared_latency"]
        return when + figures["shared_latency"]

    def _share(self, when: float, size: float) -> float:
        """Shared memory moves so many bytes; returns when it is through with all that it has to."""
        self.pipes["shared"] = max(self.pipes["shared"], when) + size / self.machine["shared"]
        return self.pipes["shared"]

    def _from_l2(self, when: float, size: float) -> float:
        self.pipes["l2"] = max(self.pipes["l2"], when) + size / self.machine["l2"]
        self._share(when, size)
        return self.pipes["l2"]

    def _multiply(self, warp: Warp, op: Op, when: float) -> None:
        begin, clocks = max(when, self.pipes["tensor"]), op.flops / self.machine["tensor"]
        self.pipes["tensor"] = max(begin + clocks, self._share(begin, op.size))
        self.begun.append(begin)
        warp.open = self.pipes["tensor"] + self.machine["drain"]
        if op.last:
            warp.groups.append(warp.open)

    def _load(self) -> None:
        """Lets the thread that loads by TMA go on: it takes tile after tile, each when its place is free."""
        while self.loads:
            load, step = self.loads[self.loaded % len(self.loads)], self.loaded // len(self.loads)
            event, offset = load.free
            free = self._time(event, step + offset)
            if free == inf:
                return
            if load.also:
                self.happened[load.also, step].append(free + self.machine["barrier"])
            free = self.pipes["loader"] = max(free, self.pipes["loader"])
            landed = self._from_l2(free, load.bytes) + self.machine["tma_latency"]
            self.happened[load.event, step].append(landed)
            self.loaded += 1
