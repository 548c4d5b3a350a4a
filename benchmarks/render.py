"""Results for readers: the Markdown page and the plot of a run, and the README's performance table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.attention.peers import DENSE
from benchmarks.compare import Record
from benchmarks.results import Run
from tivtok.files import replacing

BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"


def write_page(run: Run, folder: Path, notes: list[str]) -> None:
    """Write the run's .md and, once a sweep is in, its .png.

    Args:
        notes: lines on the regression check.
    """
    lines = [f"# {run.provenance['device']}, {run.date}", "", *_provenance(run), "", *notes, ""]
    if run.sections["attention"]:
        explained = "Rates count the exact visible area. The ceiling is a large matmul in the same rounds."
        lines += ["## Attention", "", explained, ""]
        lines += [line for title, record in run.sections["attention"].items() for line in _attention(title, record)]
    if run.sections["scaling"]:
        lines += ["## Scaling", "", f"![time against frames, TIV tokens and clips]({run.stem}.png)", ""]
        lines += _scaling(run.sections["scaling"])
        with replacing(folder / f"{run.stem}.png") as temporary:
            _plot(run.sections["scaling"], temporary)
    if run.sections["model"]:
        lines += ["## Model", "", *_model(run.sections["model"])]
    if run.sections["host"]:
        lines += ["## Machine and host", "", *_host(run.sections["host"])]
    with replacing(folder / f"{run.stem}.md") as temporary:
        temporary.write_text("\n".join(lines))


def performance_table(runs: list[Run], results: str) -> str:
    """The README's table: the default backend on each device's newest run.

    Args:
        results: link to the folder of the runs.
    """
    lines = []
    for run in runs:
        lines += [
            f"**{run.provenance['device']}** ([{run.date}]({results}/{run.stem}.md))",
            "",
            *_table(
                ("case", "backend", "time", "rate", "of matmul ceiling", "vs. SDPA, dense mask", "vs. fastest other"),
                (_performance_row(title, record) for title, record in run.sections["attention"].items()),
            ),
        ]
    measured = {run.provenance["kind"] for run in runs}
    lines += [f"{name}: unmeasured.\n" for kind, name in (("cpu", "CPU"), ("cuda", "GPU")) if kind not in measured]
    return "\n".join(lines)


def _performance_row(title: str, record: Record) -> tuple[str, ...]:
    peers, default = record["peers"], record["default"]
    if default not in peers:
        return title, default.removeprefix("tivtok "), record["refused"].get(default, "unmeasured"), "", "", "", ""
    ours = peers[default]
    others = {name: r["median_s"] for name, r in peers.items() if not name.startswith("tivtok ")}
    dense = f"{others[DENSE] / ours['median_s']:.1f}x" if DENSE in others else "-"
    fastest = min(others, key=others.__getitem__, default=None)
    against = "-" if fastest is None else f"{others[fastest] / ours['median_s']:.2f}x ({fastest})"
    rate, share = _rate(ours["flops_per_s"]), f"{ours['of_ceiling']:.0%}"
    return title, default.removeprefix("tivtok "), _time(ours["median_s"]), rate, share, dense, against


def replace_table(text: str, table: str) -> str:
    """The README with ``table`` between its two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README must hold {BEGIN} and, after it, {END}, once each")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + table + text[text.index(END) :]


def _provenance(run: Run) -> list[str]:
    p = run.provenance
    commit = f"{(p['commit'] or 'unknown')[:12]}{' with uncommitted changes' if p['dirty'] else ''}"
    facts = {
        "commit": commit,
        "torch": p["torch"],
        "triton": p["triton"],
        "CUDA": p["cuda"],
        "driver": p["driver"],
        "Python": p["python"],
        "threads": p["threads"],
        "system": p["system"],
    }
    return [" · ".join(f"{name} {value}" for name, value in facts.items() if value is not None)]


def _attention(title: str, record: Record) -> list[str]:
    peers, default = record["peers"], record["default"]
    base = peers[default]["median_s"] if default in peers else None
    on_gpu = any("host_s" in result for result in peers.values())
    head = ("", "median", "p10 .. p90", "rate", "of ceiling", "time vs. default", "memory", "set-up", "first call")
    rows = []
    for name in sorted(peers, key=lambda name: peers[name]["median_s"]):
        r = peers[name]
        row = (
            f"**{name}**" if name == default else name,
            _time(r["median_s"]),
            f"{_time(r['p10_s'])} .. {_time(r['p90_s'])}",
            _rate(r["flops_per_s"]),
            f"{r['of_ceiling']:.1%}",
            "-" if base is None else f"{r['median_s'] / base:.2f}x",
            _memory(r["peak_bytes"]),
            _time(r["prepare_s"]),
            _time(r["first_call_s"]),
        )
        rows.append((*row, _time(r["host_s"]), _time(r["graph_s"])) if on_gpu else row)
    facts = (
        f"{record['tokens']} tokens, {record['flops'] / 1e9:.1f} GFLOP, {record['rounds']} rounds, "
        f"ceiling {_rate(record['ceiling_flops_per_s'])}."
    )
    refused = [f"- Not timed, {name}: {reason}" for name, reason in record["refused"].items()]
    table = _table((*head, "host", "CUDA graph") if on_gpu else head, rows)
    return [f"### {title}", "", facts, "", *table, *refused, *_left_out(record["left_out"]), ""]


def _left_out(reasons: dict[str, str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"- Left out, {'; '.join(of_reason)}: {reason}" for reason, of_reason in names.items()]


def _scaling(sweeps: dict[str, Record]) -> list[str]:
    lines = []
    for title, record in sweeps.items():
        values = sorted({int(v) for points in record["series"].values() for v in points})
        rows = [
            (name, *(_time(points.get(str(v))) for v in values), _exponent(record["exponents"][name]))
            for name, points in record["series"].items()
        ]
        fixed = ", ".join(f"{name} {value}" for name, value in record["fixed"].items())
        lines += [f"### {title}", "", f"Fixed unless it is the axis: {fixed}.", ""]
        lines += _table((record["axis"], *map(str, values), "fitted exponent"), rows)
    return lines


def _exponent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plot(sweeps: dict[str, Record], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(sweeps), 5), layout="constrained")
    for axes, (title, record) in zip(figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps.items(), strict=True):
        for name, points in record["series"].items():
            label = f"{name}: exponent {_exponent(record['exponents'][name])}"
            axes.loglog([int(v) for v in points], list(points.values()), marker="o", label=label)
        axes.set(title=title, xlabel=record["axis"], ylabel="seconds, forward")
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _model(models: dict[str, Record]) -> list[str]:
    rows = []
    for title, record in models.items():
        for stage, r in record["stages"].items():
            speed = f"{r['tokens_per_s']:.0f}" if "tokens_per_s" in r else "-"
            spread = f"{_time(r['p10_s'])} .. {_time(r['p90_s'])}"
            paper = "-" if record["paper_s"] is None else _time(record["paper_s"])
            share = f"{r['attention']:.0%}" if "attention" in r else "-"
            rows.append((title, stage, _time(r["median_s"]), spread, share, _memory(r["peak_bytes"]), speed, paper))
    caveat = (
        "One clip, random weights, no file reading or writing. The paper's latencies (Table 2) were measured by its "
        "authors on their hardware: an order of magnitude, not a ratio."
    )
    head = ("model", "stage", "median", "p10 .. p90", "attention", "memory", "tokens/s", "paper, T128")
    return [caveat, "", *_table(head, rows)]


def _host(records: dict[str, Record]) -> list[str]:
    return [
        f"- {name}: {', '.join(f'{key} {_value(value)}' for key, value in record.items())}"
        for name, record in records.items()
    ]


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _rate(flops_per_s: float) -> str:
    return f"{flops_per_s / 1e12:.3g} TFLOP/s" if flops_per_s >= 1e12 else f"{flops_per_s / 1e9:.3g} GFLOP/s"


def _memory(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f} MiB"
