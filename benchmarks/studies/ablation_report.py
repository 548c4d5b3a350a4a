"""Table and picture of the ablations, with error bars from the seeds."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, variance
from typing import Any, NamedTuple

from benchmarks.dumps import beside
from benchmarks.studies.ablation_variants import VARIANTS
from benchmarks.studies.record import Record
from tivtok.files import replacing

# The full model is measured on longer videos, too, with these numbers of TIV sets.
LONG_FRAMES = 128
LONG_SETS = (1, 2, 4, 8)


class Score(NamedTuple):
    """Mean over the seeds, and two standard errors of it (NaN of one seed)."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if math.isnan(self.error) else f"{self.mean:.2f} ± {self.error:.2f}"


class Summary(NamedTuple):
    """What the runs of a record come to; PSNR in dB, differences are to the full model's run of the same seed."""

    seeds: int
    videos: int
    scores: dict[str, dict[str, Score]]  # by variant, then by metric
    differences: dict[str, Score]  # at 32 frames
    long: dict[int, tuple[Score, Score]]  # PSNR and SSIM by number of TIV sets


def summarise(measured: dict[str, Any]) -> Summary:
    """Of the seeds for which every variant has run.

    Error bars pool the variance between seeds over the variants, since a few seeds say little about their own.

    Raises:
        ValueError: there is no such seed.
    """
    seeds = [s for s in range(len(measured)) if all(f"{name}/{s}" in measured for name in VARIANTS)]
    if not seeds:
        raise ValueError("no seed has been run with every variant yet")

    def per_seed(variant: str, metric: str) -> list[float]:
        return [mean(measured[f"{variant}/{seed}"][metric]) for seed in seeds]

    metrics = ("psnr_16", "psnr_32", "ssim_32")
    scores = {metric: _pooled({name: per_seed(name, metric) for name in VARIANTS}) for metric in metrics}
    full = per_seed("full", "psnr_32")
    differences = {
        name: [x - y for x, y in zip(per_seed(name, "psnr_32"), full, strict=True)]
        for name in VARIANTS
        if name != "full"
    }
    long = {
        m: _pooled({n: per_seed("full", f"{m}_{LONG_FRAMES}_sets_{n}") for n in LONG_SETS}) for m in ("psnr", "ssim")
    }
    return Summary(
        seeds=len(seeds),
        videos=len(measured[f"full/{seeds[0]}"]["psnr_32"]),
        scores={name: {metric: scores[metric][name] for metric in metrics} for name in VARIANTS},
        differences=_pooled(differences),
        long={n: (long["psnr"][n], long["ssim"][n]) for n in LONG_SETS},
    )


def _pooled(values: dict[Any, list[float]]) -> dict[Any, Score]:
    count = len(next(iter(values.values())))
    error = 2 * math.sqrt(mean(variance(v) for v in values.values()) / count) if count > 1 else math.nan
    return {key: Score(mean(v), error) for key, v in values.items()}


def verdict(difference: Score, paper_db: float | None) -> str:
    """Whether a difference has the paper's sign, as far as the seeds can tell."""
    if math.isnan(difference.error):
        return "one seed: no error bar"
    if abs(difference.mean) <= difference.error:
        return "no difference beyond the seeds' noise"
    if paper_db is None:
        return "better than full" if difference.mean > 0 else "worse than full"
    return "same sign as the paper" if difference.mean * paper_db > 0 else "opposite sign to the paper"


def write_report(record: Record) -> None:
    """``ablations.md`` and ``ablations.png`` beside the record's JSON file."""
    summary = summarise(record.measured)
    with replacing(beside(record.path, ".md")) as temporary:
        temporary.write_text(_markdown(record.settings, summary))
    _plot(summary, beside(record.path, ".png"))


def _markdown(settings: dict[str, Any], summary: Summary) -> str:
    budget, model = settings["budget"], settings["model"]
    rows = []
    for name, variant in VARIANTS.items():
        score = summary.scores[name]
        difference = summary.differences.get(name)
        paper = "" if variant.paper_db is None or difference is None else f"{variant.paper_db:+.2f}"
        cells = [
            variant.title,
            f"{variant.tokens(16)} / {variant.tokens(32)}",
            score["psnr_16"],
            score["psnr_32"],
            f"{score['ssim_32'].mean:.3f}",
            difference or "",
            paper,
            verdict(difference, variant.paper_db) if difference else "",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    long = [
        f"| {sets} | {VARIANTS['full'].config.num_tokens(LONG_FRAMES, sets)} | {psnr} | {ssim.mean:.3f} |"
        for sets, (psnr, ssim) in summary.long.items()
    ]
    return f"""# Ablations in small

Which of the paper's parts pay, at a budget of CPU minutes: {budget["steps"]} steps of {budget["batch"]} clips of \
{budget["frames"]} frames at {budget["side"]}x{budget["side"]}, width {model["width"]}, \
{model["encoder_layers"]} + {model["decoder_layers"]} layers, D = {model["latent_dim"]}, MSE loss alone. \
{settings["data"]}

The models are far from trained: the table says what helps early on at this size, not what wins at the paper's \
(256x256, 12 + 12 layers, 100K iterations with perceptual and adversarial losses).

{summary.seeds} seed(s), {summary.videos} held-out videos. A seed has the same clips in the same order for every \
variant; ± is two standard errors over the seeds, their variance pooled over the variants. Written by \
`python -m benchmarks.studies ablations`; every video's score and every loss are in `ablations.json.gz`. Learning \
rates were chosen on the full model, which favours it.

## Parts of the model (the paper's Tables 5 and 6)

Difference: PSNR at 32 frames (two chunks, one TIV set) minus that of the full model, beside the paper's.

| variant | tokens 16 / 32 | PSNR dB, 16 frames | PSNR dB, 32 frames | SSIM | difference dB | paper's | verdict |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

- "No SIF" and "no broadcasting" let every token see every other of the chunk. TV tokens have the position of their \
frame group in time (`latent_positions = "grid"`, in all variants); without it, tokens that see the same things in the \
same way would be the same in every group.
- "No split" and "no reuse" have as many tokens as the full model at 32 frames; the ratios 1:1 and 1:3 as many per \
chunk.

## TIV sets for {LONG_FRAMES} frames (the paper's Table 4)

The full model, trained on clips of two chunks; {LONG_FRAMES // model["patch"][0] // model["groups_per_chunk"]} chunks.

| TIV sets | tokens | PSNR dB | SSIM |
|---|---|---|---|
{chr(10).join(long)}

Protocol: {settings["protocol"]}.
"""


def _plot(summary: Summary, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    names = list(summary.differences)
    left.barh(
        range(len(names)),
        [summary.differences[name].mean for name in names],
        xerr=None if summary.seeds == 1 else [summary.differences[name].error for name in names],
        color="tab:blue",
    )
    left.set_yticks(range(len(names)), [VARIANTS[name].title for name in names])
    left.invert_yaxis()
    left.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel="PSNR at 32 frames minus the full model's (dB)")
    tokens = [VARIANTS["full"].config.num_tokens(LONG_FRAMES, sets) for sets in summary.long]
    right.errorbar(
        tokens,
        [psnr.mean for psnr, _ in summary.long.values()],
        None if summary.seeds == 1 else [psnr.error for psnr, _ in summary.long.values()],
        marker="o",
        capsize=3,
    )
    for sets, x in zip(summary.long, tokens, strict=True):
        right.annotate(f"{sets}", (x, summary.long[sets][0].mean), (4, -12), textcoords="offset points")
    right.set(xlabel=f"tokens for {LONG_FRAMES} frames, by TIV sets", ylabel="PSNR (dB)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
