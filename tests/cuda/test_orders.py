"""The barriers of the Hopper kernels in every order in which warps and copies may go on (orders.py)."""

from __future__ import annotations

from pathlib import Path

import backward_runs
import cuda_emulator
import numpy as np
import orders
import pytest
import torch
from cuda_emulator import Kernels
from forward_runs import forward
from hopper_forward_runs import run_of
from oracle import make_case
from orders import Explorer, Kind, Run, Wrong

from tivtok_kernels import SifLayout

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported)),
]

HERE = Path(__file__).parent

# One thread loads by TMA; warps of a consumer group sign each.
FORWARD = {
    "tma": range(1),
    "consumers": range(128, 256),
    "others": range(256, 384),
    "third": range(384, 512),
}
BACKWARD = {
    **{f"copiers {i}": range(32 * i, 32 * i + 32) for i in range(4)},
    "consumers": range(128, 256),
    "others": range(256, 384),
}


class Recorder(Kernels):
    """Keeps the events of every call."""

    def __init__(self, library: Path):
        super().__init__(library)
        self.recorded = {}

    def call(self, name, *args, **options):
        super().call(name, *args, **options, record=True)
        self.recorded[name] = self.events()


@pytest.fixture(scope="session")
def forward_library():
    return cuda_emulator.build(HERE / "hopper_orders.cpp")


def forward_run(library: Path, buffers: int, pairs: int, groups: int, layout: SifLayout, scope: str) -> Run:
    """One block, one head: its items in turn."""
    kernels = Recorder(library)
    kernels.library.configure(buffers, pairs, groups)
    case = make_case(layout, scope, heads=1, kv_heads=1, head_dim=64).to(torch.bfloat16)
    forward(kernels, run_of(case, blocks=1, block=64 * groups), case)
    return orders.read(kernels.recorded["forward"], FORWARD)


# Query buffers, pairs of tiles, consumer groups, and what the block does. Steps have 32 keys.
LONG = (1, 2, 2, SifLayout.from_lengths([3], [[80]]), "broadcast")  # one item of 3 steps
CASES = {
    "long": LONG,
    "short": (1, 2, 2, SifLayout.from_lengths([3], [[40]]), "clip"),  # items of 2 and 2 steps; one group is idle
    "both groups": (1, 2, 2, SifLayout.from_lengths([3], [[70]]), "clip"),
    "three groups": (1, 2, 3, SifLayout.from_lengths([3], [[40]]), "clip"),
    "two query buffers": (2, 3, 2, SifLayout.from_lengths([3], [[5, 5]]), "clip"),
}


@pytest.mark.parametrize("case", CASES)
def test_no_order_of_the_forward_is_wrong(forward_library, case):
    assert Explorer(forward_run(forward_library, *CASES[case])).explore() > 500


def is_needed(run: Run, name: str, step: int) -> bool:
    """Whether some order goes wrong without a step."""
    try:
        Explorer(orders.without(run, name, step)).explore()
    except Wrong:
        return True
    return False


def check_that_steps_are_needed(run: Run, waits: set[str]) -> None:
    """Every signature is, but the last of a process on a barrier. Of waits some are, of the processes in ``waits``: in
    the first round of a ring there is nothing to wait for, and what another wait implies is waited for twice."""
    for name in run.programs:
        steps = orders.steps_of(run, name)
        for i, step in enumerate(steps):
            is_last = all(later.subject != step.subject or later.kind == Kind.WAIT for later in steps[i + 1 :])
            assert step.kind == Kind.WAIT or is_last or is_needed(run, name, i), (name, i, step)
        waited = [i for i, step in enumerate(steps) if step.kind == Kind.WAIT]
        assert name not in waits or any(is_needed(run, name, i) for i in reversed(waited)), name


def test_steps_left_out_of_the_forward_are_found(forward_library):
    check_that_steps_are_needed(forward_run(forward_library, *LONG), {"tma", "consumers"})


@pytest.fixture(scope="session")
def backward_library():
    return cuda_emulator.build(HERE / "hopper_backward.cpp")


def backward_runs_of(library: Path, layout: SifLayout, blocks: int) -> list[Run]:
    """Of each block; one head."""
    kernels = Recorder(library)
    case = make_case(layout, heads=1, kv_heads=1, head_dim=64)
    tiles = backward_runs.Tiles((128, 32), (128, 32), blocks)
    backward_runs.gradients(kernels, tiles, backward_runs.problem(case, torch.bfloat16))
    events = kernels.recorded["gradients"]
    return [orders.read(events[events["block"] == block], BACKWARD) for block in np.unique(events["block"])]


# What the gradient kernel's blocks do, in two stages and three places for matrices owned: steps have 32 rows.
BACKWARD_CASES = {
    "an item each": (SifLayout.from_lengths([20], [[130]]), 5),  # of 5 steps; of one group or both
    "long items": (SifLayout.from_lengths([20], [[80]]), 2),  # two of 4 steps
    "short items": (SifLayout.from_lengths([3], [[20]]), 1),  # four of one step, of queries and keys
    "a pair": (SifLayout.from_lengths([0], [[20]]), 1),  # two of one step
    "both groups": (SifLayout.from_lengths([0], [[70]]), 1),  # two of 3 steps
}


@pytest.mark.parametrize("case", BACKWARD_CASES)
def test_no_order_of_the_backward_is_wrong(backward_library, case):
    for run in backward_runs_of(backward_library, *BACKWARD_CASES[case]):
        assert Explorer(run).explore() > 500


@pytest.mark.parametrize("case", ["a pair", "both groups"])
def test_steps_left_out_of_the_backward_are_found(backward_library, case):
    (run,) = backward_runs_of(backward_library, *BACKWARD_CASES[case])
    check_that_steps_are_needed(run, set(BACKWARD) - {"others"})


def test_a_barrier_that_counts_wrong_is_found(forward_library):
    """Those that say "loaded"."""
    run = forward_run(forward_library, *LONG)
    for bar in {step.subject for step in orders.steps_of(run, "consumers") if step.kind == Kind.WAIT}:
        for wrong in (run.arrivals[bar] - 1, run.arrivals[bar] + 1):
            with pytest.raises(Wrong):
                Explorer(run._replace(arrivals=run.arrivals | {bar: wrong})).explore()


def test_stages_that_are_read_in_the_wrong_order_are_found(forward_library):
    """A wait for the other phase of a barrier."""
    run = forward_run(forward_library, *LONG)
    for name in ("tma", "consumers"):
        program = run.programs[name]
        last = max(i for i, e in enumerate(program) if e.kind == Kind.WAIT)
        changed = [*program]
        changed[last] = program[last]._replace(amount=1 - program[last].amount)
        with pytest.raises(Wrong):
            Explorer(run._replace(programs=run.programs | {name: changed})).explore()
