"""Every order in which the processes of a block can go on, explored from one run of it on the emulator.

What a thread of our kernels does next depends on its arguments alone, never on who was first. So one run tells the
whole program of each thread: its arrivals, its waits, what it writes and reads in shared memory between them. This
module puts threads that move together into processes and walks through every state that any interleaving of their
programs, and of TMA's deliveries, can reach. In none of them may

- nobody be able to go on before all are done,
- an mbarrier get more arrivals, or more bytes, than its phase expects,
- a place be written while another process, wgmma or a copy may read or write it,
- a read find another write there than in the run that was recorded.

A wait is over in a state where its barrier shows the parity: a waiter that looks too late, when the next phase has
passed as well, is among the orders. Threads of a process are taken to move together between two of its barriers, what
the emulator's vector clocks check thread by thread. The model knows nothing of the kernels: it cannot drift from them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

GRAIN = 1024  # bytes: operands of wgmma start and end on whole groups of eight swizzled rows


class Kind(IntEnum):
    """As emu::EventKind (tests/emulator/src/runtime.h)."""

    INIT = 0
    ARRIVE = 1
    EXPECT = 2
    WAIT = 3
    SYNC = 4
    ARRIVE_NAMED = 5
    LOAD = 6
    COPY = 7
    COPIES_COMMITTED = 8
    COPIES_WAITED = 9
    READ = 10
    READS_COMMITTED = 11
    READS_WAITED = 12
    PLAIN_READ = 13
    PLAIN_WRITE = 14


_MEETINGS = {Kind.WAIT, Kind.SYNC, Kind.ARRIVE_NAMED}  # what all threads of a process do together
_ARRIVALS = {Kind.ARRIVE, Kind.EXPECT}
_STEPS = _MEETINGS | _ARRIVALS
_WRITES = {Kind.LOAD, Kind.COPY, Kind.PLAIN_WRITE}


class Wrong(AssertionError):
    """An order of events that must not exist."""


class Event(NamedTuple):
    """One of a thread. ``at``: its place in the run; ``times``: threads of the process that do it."""

    at: int
    thread: int
    kind: Kind
    subject: int
    amount: int
    first: int
    last: int
    times: int = 1


Program = list[Event]  # of a process


class Run(NamedTuple):
    """Attributes:

    arrivals: of each mbarrier, by its place in shared memory, the arrivals that complete a phase.
    programs: by the name of the process.
    """

    arrivals: dict[int, int]
    programs: dict[str, Program]


def read(events: np.ndarray, processes: Mapping[str, Iterable[int]]) -> Run:
    """Programs from what the emulator recorded of one block, from the first __syncthreads on.

    Args:
        processes: threads of each; those that do nothing more may be left out.
    """
    arrivals: dict[int, int] = {}
    threads: dict[int, Program] = defaultdict(list)
    begun: set[int] = set()
    for at, (_, thread, kind, *rest) in enumerate(events.tolist()):
        if kind == Kind.INIT:
            arrivals[rest[0]] = rest[1]
        elif thread in begun:
            threads[thread].append(Event(at, thread, Kind(kind), *rest))
        elif (kind, rest[0]) == (Kind.SYNC, 0):
            begun.add(thread)
    return Run(arrivals, {name: _together([threads[t] for t in own]) for name, own in processes.items()})


def _together(threads: Sequence[Program]) -> Program:
    """One program of several threads that take the same waits and barriers."""
    split = [_split(program, _MEETINGS) for program in threads]
    meetings = [[(e.kind, e.subject, e.amount) for e in marks] for _, marks in split]
    assert all(m == meetings[0] for m in meetings), "threads of a process must wait alike"
    program: Program = []
    for i in range(len(meetings[0]) + 1):
        parts = [_split(between[i], _ARRIVALS) for between, _ in split]
        signing = [marks for _, marks in parts if marks]
        assert all([e.subject for e in marks] == [e.subject for e in signing[0]] for marks in signing), "sign alike"
        for j in range(max(len(between) for between, _ in parts)):
            accesses = [e for between, _ in parts if j < len(between) for e in between[j]]
            program += sorted(accesses)
            if signing and j < len(signing[0]):
                program.append(signing[0][j]._replace(times=len(signing)))
        if i < len(meetings[0]):
            program.append(split[0][1][i]._replace(times=len(threads)))
    return program


def _split(program: Program, marks: set[Kind]) -> tuple[list[Program], Program]:
    """What lies between events of some kinds, and these events."""
    between: list[Program] = [[]]
    for event in program:
        if event.kind in marks:
            between.append([])
        else:
            between[-1].append(event)
    return between, [event for event in program if event.kind in marks]


class _Span(NamedTuple):
    """An access of process ``p`` from one stretch between its steps to another; a place is a class of bytes.

    Attributes:
        load: the number of a TMA load, else -1.
        at: its place in the run.
    """

    p: int
    begin: int
    end: int
    writes: bool
    load: int
    at: int
    first: int
    last: int


class _Load(NamedTuple):
    bar: int
    bytes: int
    places: frozenset[int]


class Explorer:
    """The states of a run's programs. `explore` raises Wrong or returns how many there are."""

    def __init__(self, run: Run):
        self.names = list(run.programs)
        self.bars = {bar: i for i, bar in enumerate(run.arrivals)}
        self.arrivals = list(run.arrivals.values())
        self.steps = [[e for e in program if e.kind in _STEPS] for program in run.programs.values()]
        named = {e.subject for steps in self.steps for e in steps if e.kind in (Kind.SYNC, Kind.ARRIVE_NAMED)}
        self.named = {barrier: i for i, barrier in enumerate(sorted(named))}
        self.loads: list[_Load] = []
        spans = [span for p, program in enumerate(run.programs.values()) for span in self._spans(p, program)]
        self._place(spans)

    def _spans(self, p: int, program: Program) -> list[_Span]:
        spans: list[_Span] = []
        position = 0
        open_: dict[tuple[int, Kind], list[tuple[Event, int]]] = defaultdict(list)
        groups: dict[tuple[int, Kind], list[list[tuple[Event, int]]]] = defaultdict(list)
        asynchronous = {Kind.COPIES_COMMITTED: Kind.COPY, Kind.READS_COMMITTED: Kind.READ}
        waits = {Kind.COPIES_WAITED: Kind.COPY, Kind.READS_WAITED: Kind.READ}

        def add(e: Event, begin: int, end: int, load: int = -1) -> None:
            first, last = e.first, e.last
            if e.kind == Kind.READ:
                first, last = first // GRAIN * GRAIN, -(-last // GRAIN) * GRAIN
            spans.append(_Span(p, begin, end, e.kind in _WRITES, load, e.at, first, last))

        for e in program:
            if e.kind in _STEPS:
                position += 1
            elif e.kind == Kind.LOAD:
                self.loads.append(_Load(self.bars[e.subject], e.amount, frozenset()))
                add(e, position, position, len(self.loads) - 1)
            elif e.kind in (Kind.COPY, Kind.READ):
                open_[e.thread, e.kind].append((e, position))
            elif e.kind in asynchronous:
                key = e.thread, asynchronous[e.kind]
                groups[key].append(open_.pop(key, []))
            elif e.kind in waits:
                pending = groups[e.thread, waits[e.kind]]
                for group in [pending.pop(0) for _ in range(len(pending) - e.amount)]:
                    for started, begin in group:
                        add(started, begin, position)
            else:
                add(e, position, position)
        assert not any(open_.values()) and not any(any(g) for g in groups.values()), "a copy that nobody waits for"
        return spans

    def _place(self, spans: list[_Span]) -> None:
        """Bytes that the same accesses touch are one place; what every stretch begins, and what it has going on."""
        edges = sorted({edge for s in spans for edge in (s.first, s.last)})
        touching: list[set[int]] = [set() for _ in edges]
        for number, s in enumerate(spans):
            for i in range(bisect_left(edges, s.first), bisect_left(edges, s.last)):
                touching[i].add(number)
        by_accesses: dict[frozenset[tuple[object, ...]], set[int]] = {}
        for numbers in touching:
            accesses = frozenset((s.p, s.begin, s.end, s.writes, s.load) for s in (spans[n] for n in numbers))
            if any(spans[n].writes for n in numbers):
                by_accesses.setdefault(accesses, set()).update(numbers)
        self.places = len(by_accesses)
        lengths = [len(steps) + 1 for steps in self.steps]
        self.reading, self.writing = ([[set() for _ in range(n)] for n in lengths] for _ in range(2))
        self.begins: list[list[list[tuple[int, int, int]]]] = [[[] for _ in range(n)] for n in lengths]  # writes
        self.expects: list[list[list[tuple[int, int]]]] = [[[] for _ in range(n)] for n in lengths]  # reads
        loaded: dict[int, set[int]] = defaultdict(set)
        for place, numbers in enumerate(by_accesses.values()):
            own = sorted((spans[n] for n in numbers), key=lambda s: s.at)
            versions: dict[tuple[int, int, int], int] = {}
            now = 0
            for s in own:
                if s.writes:
                    now = versions.setdefault((s.p, s.begin, s.load), len(versions) + 1)
                    if s.load >= 0:
                        loaded[s.load].add(place)
                    if (place, now, s.load) not in self.begins[s.p][s.begin]:
                        self.begins[s.p][s.begin].append((place, now, s.load))
                elif (place, now) not in self.expects[s.p][s.begin]:
                    self.expects[s.p][s.begin].append((place, now))
                if s.load < 0:
                    for position in range(s.begin, s.end + 1):
                        (self.writing if s.writes else self.reading)[s.p][position].add(place)
        self.loads = [load._replace(places=frozenset(loaded[i])) for i, load in enumerate(self.loads)]

    def explore(self, most: int = 5_000_000) -> int:
        """How many states there are. Raises Wrong for one that must not be, RuntimeError for more than ``most``."""
        start = _State(
            [0] * len(self.names),
            [count << 1 for count in self.arrivals],
            [0] * len(self.named),
            [0] * self.places,
            0,
            0,
        )
        for p in range(len(self.names)):
            self._enter(start, p)
        seen = {start.key()}
        todo = [start]
        while todo:
            state = todo.pop()
            following = self._following(state)
            if not following and not self._is_over(state):
                raise Wrong(f"nobody can go on: {self._where(state)}")
            for later in following:
                key = later.key()
                if key not in seen:
                    seen.add(key)
                    todo.append(later)
                    if len(seen) > most:
                        raise RuntimeError(f"more than {most} states")
        return len(seen)

    def _is_over(self, state: _State) -> bool:
        return not state.flying and all(pc == len(s) for pc, s in zip(state.pcs, self.steps, strict=True))

    def _following(self, state: _State) -> list[_State]:
        found = []
        for p, pc in enumerate(state.pcs):
            if pc == len(self.steps[p]) or state.waiting >> p & 1:
                continue
            step = self.steps[p][pc]
            if step.kind == Kind.WAIT and state.bars[self.bars[step.subject]] & 1 == step.amount:
                continue
            later = state.copy()
            self._take(later, p, step)
            found.append(later)
        for i, load in enumerate(self.loads):
            if state.flying >> i & 1:
                later = state.copy()
                later.flying ^= 1 << i
                self._signal(later, load.bar, 0, -load.bytes)
                found.append(later)
        return found

    def _take(self, state: _State, p: int, step: Event) -> None:
        if step.kind in _ARRIVALS:
            self._signal(state, self.bars[step.subject], step.times, step.amount if step.kind == Kind.EXPECT else 0)
        elif step.kind != Kind.WAIT:
            i = self.named[step.subject]
            state.named[i] += step.times
            if state.named[i] > step.amount:
                raise Wrong(f"barrier {step.subject} has more than {step.amount} threads: {self._where(state)}")
            complete = state.named[i] == step.amount
            if complete:
                state.named[i] = 0
                for q in range(len(self.names)):
                    if state.waiting >> q & 1 and self.steps[q][state.pcs[q]].subject == step.subject:
                        state.waiting ^= 1 << q
                        self._advance(state, q)
            elif step.kind == Kind.SYNC:
                state.waiting |= 1 << p
                return
        self._advance(state, p)

    def _signal(self, state: _State, bar: int, arrivals: int, tx: int) -> None:
        """mbarriers are kept as parity, then 15 bits of arrivals to come, then bytes to come."""
        parity, pending, expected = state.bars[bar] & 1, state.bars[bar] >> 1 & 0x7FFF, state.bars[bar] >> 16
        pending, expected = pending - arrivals, expected + tx
        if pending < 0 or expected < 0:
            raise Wrong(f"mbarrier {list(self.bars)[bar]} is signed too often: {self._where(state)}")
        if not pending and not expected:
            parity, pending = parity ^ 1, self.arrivals[bar]
        state.bars[bar] = parity | pending << 1 | expected << 16

    def _advance(self, state: _State, p: int) -> None:
        state.pcs[p] += 1
        self._enter(state, p)

    def _enter(self, state: _State, p: int) -> None:
        """A process begins the accesses of the stretch it is in."""
        pc = state.pcs[p]
        flying = [load.places for i, load in enumerate(self.loads) if state.flying >> i & 1]
        others = [q for q in range(len(self.names)) if q != p]
        for place, version in self.expects[p][pc]:
            if any(place in self.writing[q][state.pcs[q]] for q in others) or any(place in f for f in flying):
                raise Wrong(f"{self.names[p]} reads what is being written: {self._where(state)}")
            if state.versions[place] != version:
                raise Wrong(f"{self.names[p]} reads what was not meant for it: {self._where(state)}")
        for place, version, load in self.begins[p][pc]:
            for kind, sets in (("read", self.reading), ("written", self.writing)):
                if any(place in sets[q][state.pcs[q]] for q in others):
                    raise Wrong(f"{self.names[p]} writes what is being {kind}: {self._where(state)}")
            if any(place in f for f in flying):
                raise Wrong(f"{self.names[p]} writes where a load is on its way: {self._where(state)}")
            state.versions[place] = version
            if load >= 0:
                state.flying |= 1 << load

    def _where(self, state: _State) -> str:
        told = []
        for name, steps, pc in zip(self.names, self.steps, state.pcs, strict=True):
            step = f"{steps[pc].kind.name.lower()} {steps[pc].subject}" if pc < len(steps) else "the end"
            told.append(f"{name} before {step} ({pc} of {len(steps)})")
        return ", ".join(told)


class _State:
    """Where each process is, what barriers and places hold, which loads are in flight, who waits at a named barrier."""

    __slots__ = ("bars", "flying", "named", "pcs", "versions", "waiting")

    def __init__(
        self, pcs: list[int], bars: list[int], named: list[int], versions: list[int], flying: int, waiting: int
    ):
        self.pcs, self.bars, self.named, self.versions = pcs, bars, named, versions
        self.flying, self.waiting = flying, waiting

    def copy(self) -> _State:
        return _State(self.pcs[:], self.bars[:], self.named[:], self.versions[:], self.flying, self.waiting)

    def key(self) -> tuple[int, ...]:
        return (*self.pcs, *self.bars, *self.named, *self.versions, self.flying, self.waiting)


def without(run: Run, name: str, step: int) -> Run:
    """The run with one step of a process left out: a fault."""
    program = run.programs[name]
    places = [i for i, e in enumerate(program) if e.kind in _STEPS]
    return run._replace(programs=run.programs | {name: program[: places[step]] + program[places[step] + 1 :]})


def swapped(run: Run, name: str, step: int) -> Run:
    """The run with two successive steps of a process, and what lies between them, in the other order: a fault."""
    program = run.programs[name]
    places = [i for i, e in enumerate(program) if e.kind in _STEPS]
    one, other = places[step], places[step + 1]
    changed = [*program[:one], program[other], *program[one + 1 : other], program[one], *program[other + 1 :]]
    return run._replace(programs=run.programs | {name: changed})


def steps_of(run: Run, name: str) -> list[Event]:
    return [e for e in run.programs[name] if e.kind in _STEPS]
