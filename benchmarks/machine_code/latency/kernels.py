"""The Hopper kernels as the model sees them: compiled for sm_90a on any machine, and what their barriers mean."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.machine_code.compile import PRODUCTS
from benchmarks.machine_code.cuda import cuobjdump
from benchmarks.machine_code.latency.code import Timed, consumer_step, copier_step, parse
from benchmarks.machine_code.latency.figures import Machine
from benchmarks.machine_code.latency.simulate import Load, Op, Result, Role, Sm, Warp, op
from benchmarks.provenance import ROOT

CSRC = ROOT / "csrc"
STEPS = 24  # simulated, of which the later half counts

Pass = Literal["forward", "dq", "dkdv"]


class Variant(NamedTuple):
    """A configuration of csrc/*/hopper/config.h.

    Attributes:
        keys: rows of keys, or of what a gradient kernel walks, per step.
        stages: steps in shared memory.
        more: query buffers of the forward, registers of the copying warps of the gradient kernel.
        consumers: warpgroups that multiply, of the forward.
        shipped: it is the one of its pass and head_dim, which compiling it checks.
    """

    work: Pass
    head_dim: int
    keys: int
    stages: int
    more: int
    shipped: bool = False
    consumers: int = 2

    @property
    def name(self) -> str:
        groups = f"{self.consumers} groups, " if self.work == "forward" else ""
        return f"{self.work} d{self.head_dim}, {groups}{self.keys} per step, {self.stages} stages"

    @property
    def rows(self) -> int:
        """Of a tile."""
        return 64 * self.consumers


VARIANTS = (
    Variant("forward", 64, 128, 5, 2, shipped=True, consumers=3),
    Variant("forward", 64, 128, 3, 2, consumers=3),
    Variant("forward", 64, 128, 2, 2, consumers=3),
    Variant("forward", 64, 160, 3, 2, consumers=3),
    Variant("forward", 64, 96, 6, 2, consumers=3),
    Variant("forward", 64, 64, 8, 2, consumers=3),
    Variant("forward", 64, 192, 4, 2),
    Variant("forward", 128, 64, 4, 2, shipped=True, consumers=3),
    Variant("forward", 128, 64, 2, 2, consumers=3),
    Variant("forward", 128, 96, 3, 1, consumers=3),
    Variant("forward", 128, 128, 3, 1),
    Variant("forward", 128, 160, 2, 1),
    Variant("dq", 64, 128, 4, 40, shipped=True),
    Variant("dq", 64, 128, 3, 40),
    Variant("dq", 64, 64, 4, 40),
    Variant("dkdv", 64, 64, 4, 40, shipped=True),
    Variant("dkdv", 64, 64, 2, 40),
    Variant("dkdv", 64, 96, 4, 40),
    Variant("dq", 128, 64, 4, 24, shipped=True),
    Variant("dq", 128, 64, 3, 24),
    Variant("dq", 128, 64, 2, 24),
    Variant("dkdv", 128, 64, 4, 24, shipped=True),
    Variant("dkdv", 128, 64, 3, 24),
    Variant("dkdv", 128, 64, 2, 24),
)

# Of the gradient kernel as it ships, by head_dim: rows of keys and of queries per step, places for matrices owned.
WALKED: dict[int, dict[Pass, int]] = {64: {"dq": 128, "dkdv": 64}, 128: {"dq": 64, "dkdv": 64}}
PLACES = {64: 4, 128: 3}
_OWNERS: dict[Pass, str] = {"dq": "queries", "dkdv": "keys"}


class Compiled(NamedTuple):
    """``said``: what ptxas complained of, spills and serialised products; "" for none."""

    code: list[Timed]
    said: str


def toolkit(nvcc: str) -> str:
    """The version of a compiler."""
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return f"nvcc {said.split(' V')[-1].split()[0]}"


def source(variant: Variant) -> str:
    """A translation unit with the one kernel; that a configuration is the shipped one is asserted."""
    if variant.work == "forward":
        folder, kernel, parameters, shipped = "forward", "forward", "hopper::KernelParams", "ForwardConfigOf"
        numbers = f"{variant.head_dim}, {variant.keys}, {variant.more}, {variant.stages}, {variant.consumers}"
        config = f"hopper::ForwardConfig<dev::bf16, {numbers}>"
    else:
        folder, kernel, parameters, shipped = "backward", "gradients", "GradientParams", "GradientPairOf"
        rows = WALKED[variant.head_dim] | {variant.work: variant.keys}
        halves = [
            f"hopper::GradientConfig<dev::bf16, {variant.head_dim}, Owner::{owner}, {rows[work]}>"
            for work, owner in _OWNERS.items()
        ]
        numbers = f"{variant.stages}, {PLACES[variant.head_dim]}, {variant.more}"
        config = f"hopper::GradientPair<{', '.join(halves)}, {numbers}>"
    lines = [f'#include "{folder}/hopper/kernel.h"', "#include <type_traits>"]
    if variant.shipped:
        lines.append(f"static_assert(std::is_base_of_v<{config}, hopper::{shipped}<dev::bf16, {variant.head_dim}>>);")
    lines.append(f"template __global__ void hopper::{kernel}<{config}>(const __grid_constant__ {parameters});")
    return "\n".join([*lines, ""])


def build(variant: Variant, nvcc: str) -> Compiled:
    """Raises:
    RuntimeError: nvcc refuses the variant.
    """
    return _compiled(source(variant), variant.name, nvcc)


@lru_cache(maxsize=1)  # both passes of the gradient kernel, one after the other
def _compiled(text: str, name: str, nvcc: str) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        unit, cubin = Path(folder, "unit.cu"), Path(folder, "unit.cubin")
        unit.write_text(text)
        command: list[str | Path] = [nvcc, "-std=c++20", "-O3", "-arch=sm_90a", "-Xptxas=-v", f"-I{CSRC}", "-cubin"]
        done = subprocess.run([*command, "-o", cubin, unit], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr or done.stdout}")
        said = re.findall(r"[1-9]\d* bytes spill stores|C75\d\d", done.stderr + done.stdout)
        listing = subprocess.run([cuobjdump(), "-sass", str(cubin)], check=True, capture_output=True, text=True).stdout
    return Compiled(parse(listing), ", ".join(dict.fromkeys(said)))


def simulate(variant: Variant, code: list[Timed], machine: Machine) -> Result:
    """A long tile, from its second step on: what comes before and after the main loop is not in it."""
    return (_forward if variant.work == "forward" else _gradients)(variant, code, machine).run(STEPS)


def _forward(variant: Variant, code: list[Timed], machine: Machine) -> Sm:
    """Consumers that take turns in issuing products; a thread that loads by TMA (csrc/forward/hopper)."""
    step = _consumer(variant, code)
    groups = variant.consumers
    # Of a step: its keys are done with, the queries in an item's last step, the values of the step before.
    arrivals = (("keys free", 0), None, ("values free", -1))
    warps = [
        Warp(f"group {g}", step, Role((("keys", 0), ("values", 0)), arrivals, f"turn {g}", f"turn {(g + 1) % groups}"))
        for g in range(groups)
    ]
    size = variant.keys * variant.head_dim * 2
    loads = (
        Load("keys", size, ("keys free", -variant.stages)),
        Load("values", size, ("values free", -variant.stages)),
    )
    sm = Sm(machine, warps, {"keys free": groups, "values free": groups}, loads)
    sm.start("turn 0")
    return sm


def _consumer(variant: Variant, code: list[Timed]) -> list[Op]:
    """A full step of a warp that multiplies."""
    flops = PRODUCTS[variant.work] * 2 * 64 * variant.keys * variant.head_dim / 4
    return [op(timed) for timed in consumer_step(code, flops)]


def _gradients(variant: Variant, code: list[Timed], machine: Machine) -> Sm:
    """Two consumers, and a warpgroup that copies row by row and says so a step later
    (csrc/backward/hopper/kernel.h)."""
    step = _consumer(variant, code)
    statistics = int(variant.work == "dkdv")
    copies = [op(timed) for timed in copier_step(code, 2 * variant.keys * variant.head_dim // 8 // 128, statistics)]
    warps = [Warp(f"group {g}", step, Role((("rows", 0),), (("rows free", 0),))) for g in range(2)]
    warps.append(Warp("copies", copies, Role((("rows free", -variant.stages),), (("rows", -1),))))
    return Sm(machine, warps, {"rows free": 2})
