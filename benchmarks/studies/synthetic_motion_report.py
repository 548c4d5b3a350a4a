"""Tables and picture of the study on synthetic motion: means over seeds, from the lowest to the highest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.dumps import beside
from benchmarks.studies.record import Record
from tivtok.files import replacing
from tivtok.model.config import TivTokConfig

PAPER = {"no SIF": 19.67 - 29.05, "no IB": 17.69 - 29.05}  # dB at 32 frames with one set, its Table 5


class Score(NamedTuple):
    """Of the seeds that were run."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Score:
        return cls(mean(values), min(values), max(values))

    def text(self, sign: str = "") -> str:
        numbers = [f"{x:{sign}.2f}" for x in self]
        return numbers[0] if self.low == self.high else f"{numbers[0]} ({numbers[1]} to {numbers[2]})"


# Title, stage, and what is read there.
COLUMNS = (
    ("16 frames", "single", "16, own sets"),
    ("32, own sets", "single", "32, own sets"),
    ("32, one set, zero-shot", "single", "32, one set"),
    ("16 frames, after", "long", "16, own sets"),
    ("32, one set, after", "long", "32, one set"),
    ("64, one set, after", "long", "64, one set"),
    ("motion kept", "last", "motion kept"),
    ("swap, with TV", "last", "swap, motion with the TV clip"),
    ("swap, with TIV", "last", "swap, motion with the TIV clip"),
)


CHANGE = ("change of TV", "last", "change of TV")


def scored(measured: dict[str, Any], name: str, stage: str, value: str) -> Score | None:
    """Over all seeds of a trial; None where that was not measured. Stage "last" is the last that the trial had."""
    runs = _seeds(measured, name).values()
    found = [run.get("long", run["single"]) if stage == "last" else run.get(stage, {}) for run in runs]
    values = [its[value] for its in found if value in its]
    return Score.of(values) if values else None


def _seeds(measured: dict[str, Any], name: str) -> dict[str, Any]:
    """What was measured of a trial, by seed."""
    return {key.rpartition("/")[2]: its for key, its in measured.items() if key.rpartition("/")[0] == name}


def difference(measured: dict[str, Any], name: str, other: str) -> Score | None:
    """dB at 32 frames with one set after the long-video stage, seed by seed, of those that both trials have."""
    pairs = [(its, measured.get(f"{other}/{seed}")) for seed, its in _seeds(measured, name).items()]
    values = [a["long"]["32, one set"] - b["long"]["32, one set"] for a, b in pairs if b]
    return Score.of(values) if values else None


def verdict(its: Score, paper_db: float) -> str:
    """Whether every seed has the paper's sign."""
    if its.low < 0 < its.high:
        return "either, by seed"
    return "the paper's" if its.mean * paper_db > 0 else "opposite to the paper's"


def write_report(record: Record, ablations: Iterable[str], others: Iterable[str]) -> None:
    """The ``.md`` and ``.png`` beside the record's JSON file, of the trials that were run so far."""
    with replacing(beside(record.path, ".md")) as temporary:
        temporary.write_text(report(record.settings, record.measured, ablations, others))
    with replacing(beside(record.path, ".png")) as temporary:
        _plot(record.settings, record.measured, list(ablations), temporary)


def report(settings: dict[str, Any], measured: dict[str, Any], ablations: Iterable[str], others: Iterable[str]) -> str:
    """The numbers as Markdown."""
    steps, model, its = settings["steps"], settings["model"], measured["baselines"]
    return f"""# Small models on synthetic motion

Written by `python -m benchmarks.studies synthetic-motion`: {model["native_size"][0]}x{model["native_size"][1]} clips \
of a smooth background and {settings["world"]["discs"]} bouncing discs, models of width {model["width"]}, \
{model["encoder_layers"]} + {model["decoder_layers"]} layers and tokens of {model["latent_dim"]} numbers; \
{steps} steps of {settings["batch"]} single chunks, then {steps // 2} of as many through the mean TIV set of \
{_listed(settings["long chunks"])} chunks ("after"). dB, motion as cosines; mean over seeds (lowest to highest), \
{settings["clips"]} test clips. A lossless still picture has {its["16"]["still picture"]:.2f} dB at 16 frames, \
{its["32"]["still picture"]:.2f} at 32.

## The paper's ablations

Latent positions, encoder, decoder. The encoder knows the time, as the paper's does. *Change of TV*: what TV tokens \
differ by between the frame groups of a chunk, as a share of their size.

{_table(measured, ablations, (*COLUMNS, CHANGE))}

One part taken away, dB at 32 frames with one set after the long-video stage, seed by seed:

{_differences(measured)}

## Other choices

24 TIV and 4 TV tokens with places and an encoder without time, unless it says otherwise.

{_table(measured, others, COLUMNS)}

## Quality against tokens

Test clips at four lengths, dB; baselines have as many numbers as the tokens of 24+4.

{_by_length(settings, measured)}
"""


def _table(measured: dict[str, Any], names: Iterable[str], columns: tuple[tuple[str, str, str], ...]) -> str:
    lines = [["trial", "seeds", *(title for title, *_ in columns)], ["---"] * (2 + len(columns))]
    for name in names:
        if seeds := len(_seeds(measured, name)):
            found = [scored(measured, name, stage, value) for _, stage, value in columns]
            lines.append([name, str(seeds), *("-" if x is None else x.text() for x in found)])
    return _rows(lines)


def _differences(measured: dict[str, Any]) -> str:
    lines = [["latent positions", "taken away", "difference", "the paper's", "sign"], ["---"] * 5]
    for places in ("none", "grid"):
        full = f"{places}, SIF, IB"
        for less, name in (("no SIF", f"{places}, dense, IB"), ("no IB", f"{places}, SIF, joint")):
            if its := difference(measured, name, full):
                lines.append([places, less, its.text("+"), f"{PAPER[less]:+.2f}", verdict(its, PAPER[less])])
    return _rows(lines)


def _by_length(settings: dict[str, Any], measured: dict[str, Any]) -> str:
    lines = [["", *(f"{frames} frames" for frames in measured["baselines"])]]
    lines.append(["---"] * len(lines[0]))
    for name, (tokens, values) in curves(settings, measured).items():
        counted = [f" ({n})" if n else "" for n in tokens]
        lines.append([name, *(f"{x:.2f}{n}" for x, n in zip(values, counted, strict=True))])
    return _rows(lines)


def curves(settings: dict[str, Any], measured: dict[str, Any]) -> dict[str, tuple[list[int], list[float]]]:
    """By row: tokens at each length, 0 where there are none to count, and dB."""
    baselines, config = measured["baselines"], TivTokConfig.from_dict(settings["model"])
    tokens = {
        "one set": [config.num_tokens(int(frames), 1) for frames in baselines],
        "own sets": [config.num_tokens(int(frames), int(frames) // config.chunk_frames) for frames in baselines],
    }
    found = {}
    for title, name, sets in (
        ("24+4, one set", "24+4", "one set"),
        ("24+4, a set per chunk", "24+4", "own sets"),
        ("undivided", "undivided, 40", "own sets"),
    ):
        scores = [scored(measured, name, "last", f"{frames}, {sets}") for frames in baselines]
        if all(scores):
            found[title] = tokens[sets], [its.mean for its in scores if its]
    for name in baselines["16"]:
        _, _, sets = name.partition(", ")
        found[name] = tokens.get(sets, [0] * len(baselines)), [its[name] for its in baselines.values()]
    return found


def _rows(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"


def _plot(settings: dict[str, Any], measured: dict[str, Any], ablations: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for stage, title, above in (("single", "zero-shot", -0.12), ("long", "after the long-video stage", 0.12)):
        runs = [(row, its[stage]) for row, name in enumerate(ablations) for its in _seeds(measured, name).values()]
        left.scatter([its["32, one set"] for _, its in runs], [row + above for row, _ in runs], s=18, label=title)
    left.axvline(measured["baselines"]["32"]["still picture"], color="black", linestyle=":", label="still picture")
    left.set_yticks(range(len(ablations)), ablations)
    left.set_ylim(len(ablations) - 0.5, -0.5)
    left.set(xlabel="PSNR of 32 frames with one TIV set (dB), a point for each seed")
    for name, (tokens, values) in curves(settings, measured).items():
        if any(tokens):
            right.plot(tokens, values, marker="o", label=name)
    right.set(xlabel="tokens for 16, 32, 64, 128 frames", ylabel="PSNR (dB)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=110)
