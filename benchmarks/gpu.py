"""`python -m benchmarks.gpu`: everything that a machine with an NVIDIA GPU can say about the kernels, in order.

What tells most comes first, what may be refused or take long comes last. Each stage runs with a limit of its own; one
that fails, hangs or is refused is reported, and the others go on. Run again, it does what has not passed at this
commit. It needs no network and no virtual environment: commands are run by the Python that runs this.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.provenance import ROOT, provenance
from tivtok.files import replacing
from tivtok_kernels.measured import slug

FOLDER = ROOT / "docs" / "results"
STATE = ROOT / "build" / "gpu"
SILENCE = 150  # seconds; the longest that a test may take, its kernels compiled by Triton and its oracle on the CPU
LAST_LINES = 12  # of a stage's output, kept in the report where it did not pass

out = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Stage:
    """A command with a limit.

    Attributes:
        arguments: of Python, or of another program if ``program`` is named.
        seconds: after which it is stopped.
        silence: seconds without a word after which it is stopped, too: a kernel that hangs says nothing any more.
        probe: a stage whose failure means that this one cannot run on this machine.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: int
    program: str = sys.executable
    probe: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    silence: float = float("inf")


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: "passed", "failed", "stopped" (at a limit) or "refused" (its probe did not pass)."""

    what: str
    seconds: float
    commit: str | None
    said: str = ""


def stages() -> list[Stage]:
    """All of them, in order."""
    pytest = ("-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider")  # names a test before it runs
    found = [
        Stage("build", ("setup.py", "build_ext", "--inplace"), 590, environment=(("TIVTOK_BUILD_CUDA", "1"),)),
        Stage("doctor", ("-m", "tivtok", "doctor"), 120),
        Stage("primitives", (*pytest, "tests/gpu/primitives"), 300, silence=SILENCE),
        Stage("triton tests", (*pytest, "tests/gpu/test_triton_gpu.py"), 590, silence=SILENCE),
        # Apart, since after an illegal access nothing else in a process can use the GPU.
        Stage("ampere tests", (*pytest, "-k", "not hopper", "tests/gpu/test_cuda_gpu.py"), 590, silence=SILENCE),
        Stage("hopper tests", (*pytest, "-k", "hopper", "tests/gpu/test_cuda_gpu.py"), 590, silence=SILENCE),
        Stage("large tests", (*pytest, "tests/gpu/test_cuda_gpu_large.py"), 590, silence=SILENCE),
        Stage("timings", ("-m", "benchmarks.report", "--device", "cuda", "--minutes", "8"), 590),
    ]
    found.append(Stage("latency", ("-m", "benchmarks.machine_code.latency", "compare"), 300))
    found.append(Stage("tune", ("-m", "tivtok_kernels.tune", "--device", "cuda"), 590))
    # The sanitizer must see every allocation, so without torch's cache.
    uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    # Else memcheck counts errors of CUDA's functions as well, which torch asks for what it then does without.
    for tool, options in (("memcheck", ("--report-api-errors", "no")), ("racecheck", ()), ("synccheck", ())):
        under = ("--error-exitcode", "1", "--tool", tool, *options, sys.executable)
        tiny = (*under, "-c", "import torch; torch.ones(1, device='cuda').add_(1).cpu()")
        probe = Stage(f"{tool}, one line", tiny, 120, "compute-sanitizer", environment=uncached)
        tests = (*under, *pytest, "tests/gpu/test_cuda_gpu.py")
        found += [probe, Stage(tool, tests, 590, "compute-sanitizer", probe.name, uncached)]
    return found


def main(
    only: Annotated[list[str] | None, typer.Option(help="Names of stages; all by default.")] = None,
    again: Annotated[bool, typer.Option(help="Also what has passed at this commit.")] = False,
    seconds: Annotated[float, typer.Option(help="Begin no stage whose limit lies beyond so many seconds from now.")] = (
        float("inf")
    ),
) -> None:
    """Run the stages that have not passed, and write a page on all of them to docs/results."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("this machine has no GPU that torch can use")
    where = provenance(torch.device("cuda"))
    outcomes = run(stages(), STATE, where["commit"], only, again, time.monotonic() + seconds)
    page = FOLDER / f"gpu-{slug(where['device'])}-{datetime.date.today()}.md"
    with replacing(page) as temporary:
        temporary.write_text(report(outcomes, where), encoding="utf-8")
    out.print(f"wrote {page}")
    if any(outcome.what in ("failed", "stopped") for outcome in outcomes.values()):
        raise typer.Exit(1)


def run(
    todo: Sequence[Stage],
    state: Path,
    commit: str | None,
    only: Sequence[str] | None = None,
    again: bool = False,
    deadline: float = float("inf"),
) -> dict[str, Outcome]:
    """Run stages and keep their outcomes in ``state``: stages.json, and a log of each.

    Raises:
        ValueError: ``only`` names a stage that there is not.
    """
    unknown = set(only or ()) - {stage.name for stage in todo}
    if unknown:
        raise ValueError(f"stages must be among {', '.join(s.name for s in todo)}, got {', '.join(sorted(unknown))}")
    state.mkdir(parents=True, exist_ok=True)
    path = state / "stages.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    outcomes = {name: Outcome(**fields) for name, fields in known.items()}
    for stage in todo:
        before = outcomes.get(stage.name)
        passed = before is not None and before.what == "passed" and before.commit == commit
        if (only and stage.name not in only) or (passed and not again):
            continue
        if time.monotonic() + stage.seconds > deadline:
            out.print(f"{stage.name}: no time left")
            continue
        out.print(f"{stage.name}: {stage.seconds} s at most")
        outcomes[stage.name] = _run(stage, outcomes, state, commit)
        out.print(f"{stage.name}: {outcomes[stage.name].what}, {outcomes[stage.name].seconds:.0f} s")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}, indent=1))
    return outcomes


def report(outcomes: dict[str, Outcome], where: dict[str, Any]) -> str:
    """A page in Markdown: where it ran, what became of each stage, and the end of what did not pass."""
    lines = [f"# {where['device']}", "", *(f"- {name}: {value}" for name, value in where.items()), ""]
    lines += ["| stage | outcome | seconds | commit |", "|---|---|---|---|"]
    for name, outcome in outcomes.items():
        lines.append(f"| {name} | {outcome.what} | {outcome.seconds:.0f} | {(outcome.commit or 'none')[:12]} |")
    for name, outcome in outcomes.items():
        if outcome.said:
            lines += ["", f"## {name}: {outcome.what}", "", *(f"    {line}" for line in outcome.said.splitlines())]
    return "\n".join(lines) + "\n"


def _run(stage: Stage, outcomes: dict[str, Outcome], state: Path, commit: str | None) -> Outcome:
    if stage.probe is not None and (stage.probe not in outcomes or outcomes[stage.probe].what != "passed"):
        return Outcome("refused", 0.0, commit)
    start = time.monotonic()
    log = state / f"{slug(stage.name)}.log"
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                [stage.program, *stage.arguments],
                cwd=ROOT,
                env=os.environ | dict(stage.environment),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome("failed", 0.0, commit, str(error))
        what = _wait(process, stage, log)
    said = "" if what == "passed" else "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    return Outcome(what, time.monotonic() - start, commit, said)


def _wait(process: subprocess.Popen[bytes], stage: Stage, log: Path) -> str:
    """What became of it, at its limits at the latest."""
    began = heard = time.monotonic()
    size = 0
    while (now := time.monotonic()) < min(began + stage.seconds, heard + stage.silence):
        with suppress(subprocess.TimeoutExpired):
            return "failed" if process.wait(0.5) else "passed"
        if (grown := log.stat().st_size) != size:
            size, heard = grown, now
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "stopped"


if __name__ == "__main__":
    typer.run(main)
