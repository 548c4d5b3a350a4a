"""``python -m benchmarks.machine_code.latency``: predicts main loops and calls of the Hopper kernels, or asks a GPU."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.dumps import read_json, write_json
from benchmarks.machine_code.latency import backward, calls, measure
from benchmarks.machine_code.latency.figures import FIGURES, machine
from benchmarks.machine_code.latency.kernels import VARIANTS, Variant, build, simulate, toolkit
from benchmarks.machine_code.report import write_section
from benchmarks.provenance import ROOT, provenance
from tivtok.files import replacing
from tivtok_kernels.measured import slug

PREDICTIONS = ROOT / "docs" / "results" / "latency.json.gz"
PAGE = ROOT / "docs" / "kernels" / "latency.md"
LOOPS = ("<!-- predictions: begin -->", "<!-- predictions: end -->")
WHOLE = ("<!-- calls: begin -->", "<!-- calls: end -->")

app = typer.Typer(add_completion=False)


@app.command()
def predict(
    only: Annotated[str, typer.Option(help="Only variants whose names hold this; nothing is written then.")] = "",
) -> None:
    """Compile the variants, simulate them, and write the predictions to docs. Needs nvcc, and no GPU."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise typer.BadParameter("nvcc, which compiles the variants, is not in PATH")
    wanted = [variant for variant in VARIANTS if only in variant.name]
    if not wanted:
        raise typer.BadParameter(f"no variant's name holds {only!r}: {'; '.join(v.name for v in VARIANTS)}")
    console = Console(stderr=True)
    where = provenance(torch.device("cpu"))
    rows = [row_of(variant, nvcc) for variant in track(wanted, "Simulating", console=console)]
    made = {"commit": where["commit"], "dirty": where["dirty"], "toolkit": toolkit(nvcc), "kernels": rows}
    made["backward"] = [] if only else [row._asdict() for row in backward.rows(rows)]
    if not only:
        write_json(PREDICTIONS, made)
        write_section(PAGE, to_markdown(made), LOOPS)
        write_section(PAGE, calls.table(made), WHOLE)
    print(to_markdown(made))


@app.command("calls")
def estimate() -> None:
    """Estimate whole calls from the predictions in docs, beside FlashAttention-3's rates, and write the table."""
    table = calls.table(read_json(PREDICTIONS))
    write_section(PAGE, table, WHOLE)
    print(table)


@app.command()
def compare() -> None:
    """Time long tiles on this machine's GPU; write each pass's clocks beside those predicted to docs/results."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        raise typer.BadParameter("needs a GPU of compute capability 9.0")
    device = torch.device("cuda")
    where = provenance(device)
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    lines = [f"# {where['device']}", "", *(f"- {name}: {value}" for name, value in where.items()), ""]
    lines.append(measure.table(measure.measured(device), read_json(PREDICTIONS), sms))
    page = PREDICTIONS.with_name(f"latency-{slug(where['device'])}-{datetime.date.today()}.md")
    with replacing(page) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(f"wrote {page}")


def row_of(variant: Variant, nvcc: str) -> dict[str, Any]:
    """A variant's prediction; of a shipped one also the clocks with each uncertain figure at its ends."""
    compiled = build(variant, nvcc)
    result = simulate(variant, compiled.code, machine())
    row = {**variant._asdict(), "name": variant.name, "ptxas": compiled.said, **result._asdict()}
    if variant.shipped:
        row["varied"] = {
            f"{name} {value:g}": simulate(variant, compiled.code, machine(**{name: value})).clocks
            for name, figure in FIGURES.items()
            for value in (figure.low, figure.high)
            if value is not None
        }
    return row


def to_markdown(made: dict[str, Any]) -> str:
    """The tables of docs/kernels/latency.md."""
    state = " with changes" if made["dirty"] else ""
    lines = [f"Commit {made['commit'][:12]}{state}, {made['toolkit']}. **Predicted, unmeasured on a GPU.**", ""]
    lines += [
        "| kernel | shipped | clocks per step | of them tensor | share of peak | between | waits, clocks per step |"
    ]
    lines += ["|---|---|---:|---:|---:|---|---|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in made["kernels"]]
    if shipped := [row for row in made["kernels"] if row["shipped"]]:
        lines += ["", "Clocks per step with one figure changed:", ""]
        names = [f"{row['work']} d{row['head_dim']}" for row in shipped]
        lines += [f"| figure | {' | '.join(names)} |", "|---|" + "---:|" * len(shipped)]
        changed = {"none": [row["clocks"] for row in shipped]}
        changed |= {change: [row["varied"][change] for row in shipped] for change in shipped[0]["varied"]}
        lines += [f"| {change} | {' | '.join(f'{x:.0f}' for x in clocks)} |" for change, clocks in changed.items()]
    if made["backward"]:
        lines += ["", "Whole calls of the backward, as shares of two launches with a block per item (backward.py):", ""]
        lines += ["| head_dim | clips | one launch, a block per item | one launch, persistent blocks |"]
        lines += ["|---:|---:|---|---|"]
    for row in made["backward"]:
        ranges = (f"{low:.2f} to {high:.2f}" for low, high in (row["grid"], row["persistent"]))
        lines.append(f"| {row['head_dim']} | {row['clips']} | {' | '.join(ranges)} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> Iterator[str]:
    share = row["tensor"] / row["clocks"]
    yield row["name"] + (f" ({row['ptxas']})" if row["ptxas"] else "")
    yield "yes" if row["shipped"] else ""
    yield f"{row['clocks']:.0f}"
    yield f"{row['tensor']:.0f}"
    yield f"{share:.2f}"
    clocks = row.get("varied", {}).values()
    yield f"{row['tensor'] / max(clocks):.2f} to {row['tensor'] / min(clocks):.2f}" if clocks else ""
    most = [max(((n, why) for why, n in lost.items()), default=(0, "")) for lost in row["lost"].values()]
    yield ", ".join(f"{who}: {why} {n:.0f}" for who, (n, why) in zip(row["lost"], most, strict=True))


if __name__ == "__main__":
    app()
