"""Compiles shipped configurations for GPUs that are not there, and reads the result."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from benchmarks.machine_code import pipes, sass
from benchmarks.machine_code.hazards import hazards
from benchmarks.machine_code.machine import blocks_per_sm
from benchmarks.machine_code.pipes import Pipes
from benchmarks.machine_code.sass import Counts
from tivtok_kernels.triton import configs
from tivtok_kernels.triton.configs import Config, Math

if TYPE_CHECKING:
    from benchmarks.machine_code.signatures import Build, Kernel

J = TypeVar("J")
T = TypeVar("T")

# Matrix products per pair of tiles, each 2 * BLOCK_Q * BLOCK_K * head_dim FLOPs.
PRODUCTS = {"forward": 2, "dkdv": 4, "dq": 3}

# Kernels without products and without tiles of their own.
HELPERS: tuple[Kernel, ...] = ("delta", "merge_outputs", "sum_gradients", "prepare_qk", "prepare_qk_backward")

GROUP = 4  # query heads per key head where a kernel sums over them

Unit = Literal["wgmma", "tcgen05", "mma", "fma"]


class Job(NamedTuple):
    """One kernel to compile.

    Attributes:
        config: of passes only (see `PRODUCTS`); their helpers have no tiles.
        group: query heads per key head.
    """

    kernel: Kernel
    arch: int
    head_dim: int
    math: Math
    tiv_apart: bool
    config: Config
    group: int = 1

    @property
    def is_pass(self) -> bool:
        return self.kernel in PRODUCTS


class Resources(NamedTuple):
    """What a kernel takes.

    Attributes:
        registers: per thread. stack: bytes per thread.
        shared: bytes per block. tensor_columns: of tensor memory, per block.
        blocks_per_sm: that fit; 0 if not even one does.
        dots: matrix products in the source by the unit that runs them ("fma" is none).
        total, loop: instructions of the kernel and of its main loop (None for helpers without one).
        loop_flops: of the matrix instructions in one step of a block, 0 where they do not name their shape (sm_100).
        pipes: the model of the main loop, on the architecture it knows; none with UTMALDG, which names no size.
        hazards: registers of products in flight that something else touches (see `hazards`).
    """

    registers: int
    stack: int
    shared: int
    tensor_columns: int
    warps: int
    blocks_per_sm: int
    dots: dict[Unit, int]
    total: Counts
    loop: Counts | None
    loop_flops: float
    pipes: Pipes | None
    hazards: tuple[str, ...] = ()


class Ptx(NamedTuple):
    """Attributes:

    text: of one kernel. shared: bytes per block. warps: per block.
    """

    text: str
    shared: int
    warps: int


def shipped() -> list[Job]:
    """Every row of the table with the TIV keys in place and apart, and the helper kernels."""
    jobs = []
    for key, config in configs.TABLE.items():
        job = Job(key.kernel, key.arch, key.head_dim, key.math, False, config)
        groups = (1, GROUP) if key.kernel == "dkdv" else (1,)  # the others only look their key head up
        jobs += [job._replace(tiv_apart=apart, group=group) for group in groups for apart in (False, True)]
        if key.kernel == "forward" and key.math != "tf32":  # helpers do no products, so precision is not theirs
            jobs += [job._replace(kernel=helper) for helper in HELPERS]
    return jobs


def compile_all(jobs: Iterable[Job]) -> Iterator[tuple[Job, Resources]]:
    """Resources of each job, as they come."""
    return outside_the_interpreter(compile_job, jobs)


def translate_all(jobs: Iterable[Job]) -> dict[Job, Ptx]:
    """PTX of each job."""
    return dict(outside_the_interpreter(translate_job, jobs))


def outside_the_interpreter(function: Callable[[J], T], jobs: Iterable[J]) -> Iterator[tuple[J, T]]:
    """What a function makes of each job, in as many processes as there are CPUs. None is under TRITON_INTERPRET=1,
    where kernels are not compiled."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _leave_interpreter) as pool:
        pending = {pool.submit(function, job): job for job in jobs}
        for future in as_completed(pending):
            yield pending[future], future.result()


def translate_job(job: Job) -> Ptx:
    kernel = _compiled(job)
    return Ptx(kernel.asm["ptx"], kernel.metadata.shared, kernel.metadata.num_warps)


def build_of(job: Job) -> Build:
    from benchmarks.machine_code import signatures
    from tivtok_kernels.triton.launch import Shape

    return signatures.build(job.kernel, Shape(job.head_dim, job.group, job.tiv_apart, job.math), job.config)


def _compiled(job: Job) -> Any:
    """triton's CompiledKernel. Needs triton, but no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    build = build_of(job)
    pointers = [i for i, kind in enumerate(build.signature.values()) if kind.startswith("*")]
    source = ASTSource(
        build.function, build.signature, build.constants, {(i,): [["tt.divisibility", 16]] for i in pointers}
    )
    return triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=build.options)


def compile_job(job: Job) -> Resources:
    kernel = _compiled(job)
    text = disassemble(kernel.asm["cubin"])
    code = sass.parse(text)
    loop = sass.main_loop(code) if job.is_pass else None
    registers, stack = sass.parse_usage(text)
    warps, columns = kernel.metadata.num_warps, getattr(kernel.metadata, "tmem_size", 0) or 0
    return Resources(
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        tensor_columns=columns,
        warps=warps,
        blocks_per_sm=blocks_per_sm(job.arch, registers, warps, kernel.metadata.shared, columns),
        dots=dot_units(kernel.asm["ttgir"]),
        total=sass.count(code),
        loop=None if loop is None else sass.count(loop),
        loop_flops=sass.matrix_flops(loop or ()) * warps,
        pipes=pipes.pipes(loop, warps) if loop and job.arch == pipes.ARCH and not sass.count(loop).utmaldg else None,
        hazards=tuple(hazards(code)),
    )


def disassemble(cubin: bytes) -> str:
    """Machine code and resource usage, as printed by the cuobjdump that comes with triton."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dot_units(ttgir: str) -> dict[Unit, int]:
    """Matrix products by unit, from triton's GPU dialect, where each is one operation with its layout."""
    units: Counter[Unit] = Counter()
    units["wgmma"] = len(re.findall(r"\bttng\.warp_group_dot ", ttgir))
    units["tcgen05"] = len(re.findall(r"\bttng\.tc_gen5_mma ", ttgir))
    for layout in re.findall(r"= tt\.dot .*-> tensor<[^>]*#([a-z_]+)", ttgir):
        units["mma" if layout == "mma" else "fma"] += 1
    return {unit: n for unit, n in units.items() if n}


def tile_flops(job: Job) -> int:
    """FLOPs that one step of the main loop is there for."""
    return PRODUCTS[job.kernel] * 2 * job.config.block_q * job.config.block_k * job.head_dim


def _leave_interpreter() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
