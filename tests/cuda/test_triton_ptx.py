"""What triton compiles of our kernels, executed: its PTX on the emulator, against the float64 oracle.

The interpreter runs the source, in float16 or float32 and without threads. Here layouts, copies, barriers and matrix
products are the compiler's, the elements are bfloat16, and the emulator checks every access on the way.
"""

from __future__ import annotations

import cuda_emulator
import pytest
import torch
from oracle import check_results, make_case
from triton_runs import Machine, compile_programs

from benchmarks.machine_code import signatures
from benchmarks.machine_code.compile import Job
from tivtok_kernels import SifLayout, schedule
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.problem import Call
from tivtok_kernels.triton import configs, launch
from tivtok_kernels.triton.configs import Config

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported)),
]

CONFIG = Config(64, 64, 4, 2, 2)
KERNELS = ("forward", "dq", "dkdv", "delta", "merge_outputs", "sum_gradients")
GROUP = 2
LAYOUT = SifLayout.from_lengths([5, 3], [[70, 150], [64, 0]])  # full steps and tails; 4 steps under the TIV rows


@pytest.fixture(scope="module")
def programs():
    made = {}

    def programs_of(arch: int, tiv_apart: bool):
        if (arch, tiv_apart) not in made:
            job = Job("forward", arch, 64, "half", tiv_apart, CONFIG, GROUP)
            made[arch, tiv_apart] = compile_programs(job._replace(kernel=kernel) for kernel in KERNELS)
        return made[arch, tiv_apart]

    return programs_of


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scope", ["clip", "broadcast"])
@pytest.mark.parametrize("arch", [80, 90])
def test_forward_and_backward(monkeypatch, programs, arch, scope, seed):
    """Of ragged clips, grouped queries, split tiles."""
    machine = Machine(programs(arch, scope == "broadcast"))
    machine.seed = seed
    for kernel in KERNELS:
        monkeypatch.setattr(launch, signatures.FUNCTIONS[kernel].__name__, machine.stand_in(kernel))
    monkeypatch.setattr(configs, "select", lambda *_: CONFIG)
    monkeypatch.setattr(configs, "workers", lambda *_: 10**6)
    monkeypatch.setattr(schedule, "MIN_STEPS_TO_SPLIT", 3)
    case = make_case(LAYOUT, scope, heads=2 * GROUP, kv_heads=2, head_dim=64, seed=seed).to(torch.bfloat16)
    inputs = list(case.inputs.values())
    call = Call(*inputs[:3], tuple(inputs[3:]) or None, LAYOUT, scope, case.the_scale)

    out, lse = launch.forward(call)
    gradients = launch.backward(call, out, lse, case.dout, case.dlse)
    named = {f"d{name}": x for name, x in zip(case.inputs, gradients, strict=True)}
    check_results({"out": out, "lse": lse} | named, case, Arithmetic(torch.bfloat16))
    assert set(machine.launched) == set(KERNELS)
