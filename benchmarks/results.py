"""A run on disk, docs/results/<device>-<date>.{json.gz,md,png}, and what it says against the last committed one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare import Record
from benchmarks.dumps import parse_json, write_json
from benchmarks.provenance import committed, committed_files
from tivtok_kernels.measured import slug

FORMAT = 1
_DATE = "-".join(["[0-9]" * digits for digits in (4, 2, 2)])  # as a glob and as a regular expression
SECTIONS = ("attention", "scaling", "model", "host")


@dataclass
class Run:
    """Everything measured on one device on one day.

    Attributes:
        provenance: see `benchmarks.provenance`.
        sections: section -> title -> record, filled as the work proceeds.
    """

    provenance: dict[str, Any]
    date: str
    sections: dict[str, dict[str, Record]] = field(default_factory=lambda: {name: {} for name in SECTIONS})
    format: int = FORMAT

    @classmethod
    def parse(cls, stored: bytes) -> Run:
        """The inverse of `save`.

        Raises:
            ValueError: not a run, or one of another format.
        """
        values = parse_json(stored)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"not benchmark results of format {FORMAT}")
        return cls(values["provenance"], values["date"], values["sections"])

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return f"{slug(self.provenance['device'])}-{self.date}"

    def save(self, folder: Path) -> None:
        write_json(folder / f"{self.stem}.json.gz", asdict(self))


def resume(provenance: dict[str, Any], date: str, folder: Path) -> Run:
    """Today's run so far if it was made under the same provenance, else an empty one."""
    run = Run(provenance, date)
    path = folder / f"{run.stem}.json.gz"
    if path.exists():
        earlier = Run.parse(path.read_bytes())
        if earlier.provenance == provenance:
            return earlier
    return run


def newest_runs(folder: Path) -> list[Run]:
    """The newest run of each device, by name of the device. Files without a date in their name are other results."""
    newest: dict[str, Run] = {}
    for path in folder.glob(f"*-{_DATE}.json.gz"):
        run = Run.parse(path.read_bytes())
        name = run.provenance["device"]
        if name not in newest or newest[name].date < run.date:
            newest[name] = run
    return [newest[name] for name in sorted(newest)]


def baseline(run: Run, folder: Path) -> Run | None:
    """The last committed run on the same device."""
    pattern = re.compile(re.escape(slug(run.provenance["device"])) + rf"-{_DATE}\.json\.gz")
    names = sorted(path for path in committed_files(folder) if pattern.fullmatch(path.name))
    stored = committed(names[-1]) if names else None
    return None if stored is None else Run.parse(stored)


def costs(run: Run) -> dict[str, float]:
    """Our own costs in units that survive a slower or faster machine: ceiling over rate, matmuls, instructions."""
    return dict(_costs(run))


def _costs(run: Run) -> Iterator[tuple[str, float]]:
    for title, record in run.sections["attention"].items():
        for peer, result in record["peers"].items():
            if peer.startswith("tivtok "):
                yield f"{title}: {peer}", 1 / result["of_ceiling"]
    for title, record in run.sections["model"].items():
        for stage, result in record["stages"].items():
            yield f"{title}: {stage}", result["in_matmuls"]
    count = run.sections["host"].get("instructions", {}).get("instructions_per_call")
    if count is not None:
        yield "sif_attention host path: instructions", count


def regressions(old: Run, new: Run, percent: float) -> list[str]:
    """List what costs more than ``percent`` above the old run, worst first."""
    before, after = costs(old), costs(new)
    growth = {name: 100 * (after[name] / before[name] - 1) for name in after.keys() & before.keys()}
    worse = sorted((name for name in growth if growth[name] > percent), key=lambda name: -growth[name])
    return [f"{name}: {growth[name]:+.0f} % relative to the ceiling" for name in worse]
