"""Checks of shipped kernels: no spills, no synchronous copies in a main loop, products on tensor cores; they fit."""

from __future__ import annotations

from benchmarks.machine_code.compile import Job, Resources, Unit

TENSOR_CORES: dict[int, Unit] = {80: "mma", 86: "mma", 90: "wgmma", 100: "tcgen05"}

# wgmma and tcgen05 take 64 rows at least; where a tile of so many spills, mma.sync has to do. So it is for many TF32
# rows of the table, and for these (arch, head_dim, kernel) of its 16-bit ones.
SMALL_ROWS = {(90, 256, "dkdv")}


def faults(job: Job, found: Resources) -> list[str]:
    """One line for each; none for a clean kernel."""
    lines = []
    spills = found.total.spill_loads + found.total.spill_stores
    if spills:
        lines.append(f"{spills} spills")
    lines += found.hazards[:3]
    if found.blocks_per_sm == 0:
        lines.append(f"no block fits on an SM ({found.registers} registers, {found.shared} bytes of shared memory)")
    if job.is_pass:
        lines += _pass_faults(job, found)
    return lines


def _pass_faults(job: Job, found: Resources) -> list[str]:
    lines = []
    if job.config.per_sm > found.blocks_per_sm > 0:
        lines.append(f"the table counts on {job.config.per_sm} blocks per SM, {found.blocks_per_sm} fit")
    if found.loop is None:
        return [*lines, "no main loop found"]
    if job.math == "half" and found.loop.async_copies == 0:
        lines.append("no asynchronous copy in the main loop")
    if job.math != "ieee":  # float32 products on tensor cores are tf32 products
        lines += _dot_faults(job, found)
    return lines


def _dot_faults(job: Job, found: Resources) -> list[str]:
    rows = job.config.block_k if job.kernel == "dkdv" else job.config.block_q
    small = rows < 64 and (job.math == "tf32" or (job.arch, job.head_dim, job.kernel) in SMALL_ROWS)
    wanted = "mma" if small else TENSOR_CORES[job.arch]
    others = {unit: n for unit, n in found.dots.items() if unit != wanted}
    if not found.dots:
        return ["no matrix product found"]
    return [f"products not on {wanted}: {others}"] if others else []
