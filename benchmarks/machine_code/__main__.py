"""``python -m benchmarks.machine_code``: what the compiler makes of every kernel shipped, and whether it may stay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from benchmarks.dumps import write_json
from benchmarks.machine_code import report
from benchmarks.machine_code.checks import faults
from benchmarks.machine_code.compile import HELPERS, PRODUCTS, compile_all, shipped

app = typer.Typer(add_completion=False)


@app.command()
def inspect(
    arch: Annotated[list[int] | None, typer.Option(help="Only these: 80, 86, 90, 100.")] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(help=f"Only these: {', '.join((*PRODUCTS, *HELPERS))}."),
    ] = None,
    head_dim: Annotated[list[int] | None, typer.Option(help="Only these: 64, 128, 256.")] = None,
    math: Annotated[list[str] | None, typer.Option(help="Only these: half, tf32, ieee.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything found to this file, .json or .json.gz.")] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write the table to this page, between its marks."),
    ] = None,
) -> None:
    """Compile the shipped kernels for GPUs that need not be there and report registers, spills, shared memory,
    occupancy, matrix instructions, asynchronous copies, and a pipe model of their main loops.

    Exits with 1 if any kernel spills, does not fit, copies synchronously in its main loop or misses the tensor cores.
    """
    wanted = {"arch": arch, "kernel": kernel, "head_dim": head_dim, "math": math}
    jobs = [job for job in shipped() if all(getattr(job, name) in only for name, only in wanted.items() if only)]
    if not jobs:
        given = ", ".join(f"{name} {' '.join(map(str, only))}" for name, only in wanted.items() if only)
        raise typer.BadParameter(f"no shipped kernel matches {given}")
    console = Console(stderr=True)
    try:
        import triton
    except ImportError as error:
        console.print(f"triton does the compiling and cannot be imported: {error}")
        raise typer.Exit(2) from None
    found = dict(track(compile_all(jobs), "Compiling", total=len(jobs), console=console))
    ordered = {job: found[job] for job in jobs}
    if json:
        write_json(json, report.to_json(ordered, triton.__version__))
    if markdown:
        report.write_section(markdown, report.to_markdown(ordered, triton.__version__))
    Console(width=None if sys.stdout.isatty() else 240).print(report.table(ordered))
    bad = sum(bool(faults(job, resources)) for job, resources in ordered.items())
    if bad:
        console.print(f"{bad} of {len(jobs)} kernels are not clean")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
