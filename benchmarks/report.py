"""`python -m benchmarks.report`: run the grid, write docs/results, compare with the last committed run."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import method, results
from benchmarks.attention.cases import cases
from benchmarks.attention.instructions import measure_instructions
from benchmarks.attention.scaling import SWEEPS, measure_sweep
from benchmarks.compare import Measurement, Record, measure
from benchmarks.model.models import measure_model, model_cases
from benchmarks.provenance import ROOT, provenance
from benchmarks.render import performance_table, replace_table, write_page
from tivtok.files import replacing
from tivtok_kernels import SifLayout, sif_attention, timing

FOLDER = ROOT / "docs" / "results"

# Rough measuring time of one piece of work; checks, first calls and the minimum of rounds come on top.
_SECONDS = {
    "attention": {"cpu": 5.0, "cuda": 1.0},
    "scaling": {"cpu": 0.3, "cuda": 0.2},
    "model": {"cpu": 3.0, "cuda": 2.0},
}


class Work(NamedTuple):
    section: str
    title: str
    measure: Callable[[], Record]


def all_work(device: torch.device) -> Iterator[Work]:
    """Every piece of a full run, in order."""
    seconds = {section: by_kind[device.type] for section, by_kind in _SECONDS.items()}
    yield Work("host", "ceilings", partial(_ceilings, device))
    yield Work("host", "small call", partial(_small_call, device))
    for case in cases(device):
        yield Work("attention", case.title, partial(_record, measure, case, device, seconds["attention"]))
    for sweep in SWEEPS:
        yield Work("scaling", sweep.title, partial(measure_sweep, sweep, device, seconds["scaling"]))
    for model in model_cases(device):
        yield Work("model", model.title, partial(_record, measure_model, model, device, seconds["model"]))
    yield Work("host", "instructions", measure_instructions)


T = TypeVar("T")


def _record(
    measure: Callable[[T, torch.device, float], Measurement], case: T, device: torch.device, seconds: float
) -> Record:
    return measure(case, device, seconds).record


def _ceilings(device: torch.device) -> Record:
    matmul, flops = method.matmul_ceiling(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    copy, size = method.copy_ceiling(device)
    samples = timing.interleave({"matmul": matmul, "copy": copy}, timing.Stopwatch(device), seconds=2.0)
    medians = {name: method.summary(seconds)["median_s"] for name, seconds in samples.items()}
    return {"matmul_flops_per_s": flops / medians["matmul"], "copy_bytes_per_s": size / medians["copy"]}


def _small_call(device: torch.device) -> Record:
    """Host time of a forward call too small to compute anything, with the default backend."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layout = SifLayout.uniform(batch=1, num_tiv=4, num_frames=2, frame_tokens=8)
    q = torch.ones(layout.total_tokens, 2, 64, dtype=dtype, device=device)
    sif_attention(q, q, q, layout)
    return {"host_s": method.host_seconds(lambda: sif_attention(q, q, q, layout), device, repeats=200)}


def main(
    section: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(results.SECTIONS)}.")] = None,
    minutes: Annotated[float, typer.Option(help="Start nothing new after this long; run again to go on.")] = 9.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what today's file has of them.")] = False,
    percent: Annotated[float, typer.Option(help="List what got slower by more than this.")] = 10.0,
    device: Annotated[str, typer.Option(help="cpu or cuda; by default the GPU where there is one.")] = "",
    folder: Annotated[Path, typer.Option(help="Where results go.")] = FOLDER,
    readme: Annotated[bool, typer.Option("--readme", help="Measure nothing: rewrite the README's table.")] = False,
) -> None:
    """Measure everything this machine can run, resuming today's file, and write it with its provenance."""
    console = Console()
    if readme:
        update_readme(ROOT / "README.md", folder)
        return
    if unknown := set(section or ()) - set(results.SECTIONS):
        raise typer.BadParameter(f"must be among {results.SECTIONS}, got {sorted(unknown)}", param_hint="--section")
    if device not in ("", "cpu", "cuda"):
        raise typer.BadParameter(f'must be "cpu" or "cuda", got {device!r}', param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("cuda was asked for, and torch finds no GPU here", param_hint="--device")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    date, here = datetime.date.today().isoformat(), provenance(target)
    run = results.resume(here, date, folder)
    if fresh:
        run.sections |= {name: {} for name in section or results.SECTIONS}
    work = [w for w in all_work(target) if not section or w.section in section]
    left = carry_out([w for w in work if w.title not in run.sections[w.section]], run, folder, 60 * minutes, console)

    notes = regression_notes(run, folder, percent)
    write_page(run, folder, notes)
    console.print(*notes, f"Results: {folder / run.stem}.json.gz, .md, .png", sep="\n", markup=False, highlight=False)
    if left:
        console.print(f"{left} of {len(work)} pieces are left: run the same command again.")


def carry_out(work: list[Work], run: results.Run, folder: Path, seconds: float, console: Console) -> int:
    """Do the work, saving after each piece, and return how many pieces the time did not allow."""
    stop = time.monotonic() + seconds
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(work))
        for done, piece in enumerate(work):
            if time.monotonic() > stop:
                return len(work) - done
            progress.update(task, description=f"{piece.section}: {piece.title}")
            run.sections[piece.section][piece.title] = piece.measure()
            run.save(folder)
            progress.advance(task)
    return 0


def regression_notes(run: results.Run, folder: Path, percent: float) -> list[str]:
    old = results.baseline(run, folder)
    if old is None:
        return ["No committed run on this device to compare with."]
    name = f"the committed run of {old.date} (commit {(old.provenance['commit'] or 'unknown')[:12]})"
    worse = results.regressions(old, run, percent)
    if not worse:
        return [f"Nothing is more than {percent:g} % slower than {name}."]
    return [f"More than {percent:g} % slower than {name}:", *(f"- {line}" for line in worse)]


def update_readme(path: Path, folder: Path) -> None:
    """Rewrite the performance table from the newest run of each device."""
    table = performance_table(results.newest_runs(folder), os.path.relpath(folder, path.parent))
    text = replace_table(path.read_text(), table)
    with replacing(path) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    typer.run(main)
