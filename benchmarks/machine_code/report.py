"""The report as a table, as Markdown and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.machine_code import pipes
from benchmarks.machine_code.checks import faults
from benchmarks.machine_code.compile import Job, Resources, tile_flops
from tivtok.files import replacing
from tivtok_kernels.triton.configs import Config

Report = dict[Job, Resources]

BEGIN, END = "<!-- resources: begin -->", "<!-- resources: end -->"
NOTE = (
    "Read from compiled code, never run. Model columns are no measurement: the bound of a pipe model of the main loop "
    f"on an sm_{pipes.ARCH} SM ({pipes.SMS} SMs at {pipes.GIGAHERTZ} GHz)."
)


def cells(job: Job, found: Resources) -> dict[str, str]:
    """One row of the table by column; a dash where there is nothing to say."""
    config, loop = job.config, found.loop
    row = {
        "kernel": _name(job),
        "sm": str(job.arch),
        "dim": str(job.head_dim),
        "math": job.math,
        "tile": _tile(config) if job.is_pass else "-",
        "warps": str(found.warps),
        "stages": str(config.stages) if job.is_pass else "-",
        "regs": str(found.registers),
        "spills": str(found.total.spill_loads + found.total.spill_stores),
        "stack": str(found.stack),
        "smem KiB": f"{found.shared / 1024:.0f}",
        "blocks per SM": str(found.blocks_per_sm),
        "dots": ", ".join(f"{n} {unit}" for unit, n in found.dots.items()) or "-",
    }
    names = {"HGMMA": "hgmma", "HMMA": "hmma", "tcgen05": "tcgen05", "LDGSTS": "ldgsts", "UTMALDG": "utmaldg"}
    names |= {"EX2": "ex2", "instr.": "instructions"}
    row |= {title: str(getattr(loop, name)) if loop else "-" for title, name in names.items()}
    row["FLOPs / tile"] = f"{found.loop_flops / tile_flops(job):.2f}" if found.loop_flops else "-"
    row |= _model_cells(job, found)
    return row | {"verdict": "; ".join(faults(job, found)) or "clean"}


def _name(job: Job) -> str:
    traits = ["TIV apart"] * job.tiv_apart + [f"groups of {job.group}"] * (job.group > 1)
    return job.kernel + (f" ({', '.join(traits)})" if traits else "")


def _tile(config: Config) -> str:
    """Query rows, and those of short tiles where they have a height of their own, by key rows."""
    short = f" or {config.short_q}" if config.short_q else ""
    return f"{config.block_q}{short} x {config.block_k}"


def _model_cells(job: Job, found: Resources) -> dict[str, str]:
    titles = ["model tensor", "model exp", "model arith", "model smem"]
    titles += ["model TFLOP/s overlap", "model TFLOP/s serial"]
    if found.pipes is None:
        return dict.fromkeys(titles, "-")
    bounds = [pipes.tflops(tile_flops(job), cycles) for cycles in (found.pipes.overlapped, found.pipes.serial)]
    return dict(zip(titles, [f"{x:.0f}" for x in (*found.pipes, *bounds)], strict=True))


def table(report: Report) -> Table:
    """Table for the terminal: only columns that say something, one row per kernel."""
    rows = [cells(job, found) for job, found in report.items()]
    drawn = Table(caption=NOTE)
    titles = [title for title in rows[0] if any(row[title] not in ("-", "0") for row in rows)]
    for title in titles:
        drawn.add_column(title, justify="left" if title in ("kernel", "verdict") else "right")
    for row in rows:
        drawn.add_row(*(row[title] for title in titles), style=None if row["verdict"] == "clean" else "red")
    return drawn


def to_markdown(report: Report, triton_version: str) -> str:
    rows = [cells(job, found) for job, found in report.items()]
    lines = [f"{NOTE} Compiled by triton {triton_version}.", ""]
    lines += [_markdown_row(list(rows[0])), _markdown_row(["---"] * len(rows[0]))]
    return "\n".join([*lines, *(_markdown_row(list(row.values())) for row in rows)])


def to_json(report: Report, triton_version: str) -> dict[str, Any]:
    kernels = []
    for job, found in report.items():
        entry = {**job._asdict(), "config": job.config._asdict(), **found._asdict(), "faults": faults(job, found)}
        for part in ("total", "loop", "pipes"):
            if entry[part] is not None:
                entry[part] = entry[part]._asdict()
        kernels.append(entry)
    return {"note": NOTE, "triton": triton_version, "kernels": kernels}


def write_section(path: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put ``text`` between two marks of a Markdown page; a new page is nothing else.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = marks
    section = f"{begin}\n{text}\n{end}"
    if path.exists():
        page = path.read_text(encoding="utf-8")
        if begin not in page or end not in page:
            raise ValueError(f"{path} must hold the lines {begin} and {end}, found a page without them")
        section = page[: page.index(begin)] + section + page[page.index(end) + len(end) :]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(section if section.endswith("\n") else section + "\n", encoding="utf-8")


def _markdown_row(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"
