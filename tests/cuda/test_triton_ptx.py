"""What triton compiles of our kernels, executed: its PTX on the emulator, against the float64 oracle.

The interpreter runs the source, in float16 or float32 and without threads. Here layouts, copies, barriers and matrix
products are the compiler's, the elements are bfloat16, and the emulator checks every access on the way.
"""

from __future__ import annotations

import re
from functools import cache

import cuda_emulator
import ptx2cpp
import pytest
import torch
from oracle import Case, check_results, make_case
from triton_runs import Machine, compile_programs

from benchmarks.machine_code import signatures
from benchmarks.machine_code.compile import Job, translate_all
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


def jobs(arch: int, tiv_apart: bool) -> list[Job]:
    return [Job(kernel, arch, 64, "half", tiv_apart, CONFIG, GROUP) for kernel in KERNELS]


@pytest.fixture(scope="module")
def translations():
    """The PTX of every kernel for an architecture, made once."""
    return cache(lambda arch, tiv_apart: translate_all(jobs(arch, tiv_apart)))


@pytest.fixture(scope="module")
def programs(translations):
    return cache(lambda arch, tiv_apart: compile_programs(translations(arch, tiv_apart)))


def run_forward(monkeypatch, machine: Machine, case: Case) -> tuple[Call, torch.Tensor, torch.Tensor]:
    """A call whose tiles are split, out and LSE. From here on `launch` runs its kernels on the machine."""
    for kernel in KERNELS:
        monkeypatch.setattr(launch, signatures.FUNCTIONS[kernel].__name__, machine.stand_in(kernel))
    monkeypatch.setattr(configs, "select", lambda *_: CONFIG)
    monkeypatch.setattr(configs, "workers", lambda *_: 10**6)
    monkeypatch.setattr(schedule, "MIN_STEPS_TO_SPLIT", 3)
    inputs = list(case.inputs.values())
    call = Call(*inputs[:3], tuple(inputs[3:]) or None, case.layout, case.scope, case.the_scale)
    return call, *launch.forward(call)


def make(scope: str, seed: int = 0) -> Case:
    return make_case(LAYOUT, scope, heads=2 * GROUP, kv_heads=2, head_dim=64, seed=seed).to(torch.bfloat16)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scope", ["clip", "broadcast"])
@pytest.mark.parametrize("arch", [80, 90])
def test_forward_and_backward(monkeypatch, programs, arch, scope, seed):
    """Of ragged clips, grouped queries, split tiles; the second seed shuffles threads, too."""
    machine = Machine(programs(arch, scope == "broadcast"))
    machine.seed = seed
    case = make(scope, seed)
    call, out, lse = run_forward(monkeypatch, machine, case)
    gradients = launch.backward(call, out, lse, case.dout, case.dlse)
    named = {f"d{name}": x for name, x in zip(case.inputs, gradients, strict=True)}
    check_results({"out": out, "lse": lse} | named, case, Arithmetic(torch.bfloat16))
    assert set(machine.launched) == set(KERNELS)
    assert {unit for unit, n in machine.products.items() if n} == {{80: "mma", 90: "wgmma"}[arch]}


FAULTS = {
    "no barriers": (80, r"bar\.sync\s+0;", ""),
    "copies not waited for": (80, r"cp\.async\.wait_group[^;]*;", ""),
    "maximum of half a row": (80, r"(shfl\.sync\.bfly\.b32[^;]*), 2, 31, -1;", r"\1, 0, 31, -1;"),
    "keys transposed": (90, r"(wgmma\.mma_async[^;]*), 0, 0;", r"\1, 0, 1;"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_ptx_are_found(monkeypatch, translations, fault):
    arch, old, new = FAULTS[fault]

    def planted(ptx: str) -> str:
        changed, count = re.subn(old, new, ptx)
        assert count or "mma" not in ptx  # the merge has no products
        return changed

    made = {job: ptx for job, ptx in translations(arch, False).items() if job.kernel in ("forward", "merge_outputs")}
    machine = Machine(compile_programs(made, planted))
    case = make("clip")
    with pytest.raises(AssertionError):
        _, out, lse = run_forward(monkeypatch, machine, case)
        check_results({"out": out, "lse": lse}, case, Arithmetic(torch.bfloat16))


def test_places_in_shared_memory_keep_their_offset():
    text = ".entry f(\n)\n{\n.reg .b32 %r<1>;\nmov.b32 %r0, global_smem+16;\nret;\n}\n"
    assert "ptx::kSharedBase + 16" in ptx2cpp.translate(text)


def test_what_the_translator_does_not_know_is_an_error():
    text = ".entry f(\n)\n{\nret;\n}\n"
    ptx2cpp.translate(text)
    for foreign in (
        ".global .b8 data[4] = {1, 2, 3, 4};\n.entry f(\n)\n{\nmov.u64 %r, data;\n}\n",
        ".func g() { ret; }\n",
    ):
        with pytest.raises(ptx2cpp.UnsupportedPtx):
            ptx2cpp.translate(foreign + text)
