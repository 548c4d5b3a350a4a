"""One model for any number of tokens beside a model for each number, and integer codes beside free values.

Small models on synthetic motion (`benchmarks.studies.synthetic_motion`), all trained alike.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.dumps import beside
from benchmarks.studies.ablation_variants import FULL
from benchmarks.studies.record import Record
from benchmarks.studies.synthetic_motion import TEST_CLIPS, TEST_FRAMES, TEST_SEED, minimise, moving_discs, psnr
from tivtok.files import replacing
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok

out = Console(highlight=False, markup=False)

# Nested tokens have no places, so none of the models compared has.
MODEL = FULL.replace(name="motion", num_tv=4, encoder_time="none", latent_positions="none")
NESTED = "any number"
SHARE = 0.5  # of the nested model's steps, with fewer tokens
TRIALS: dict[str, dict[str, Any]] = {
    NESTED: {"nested": True},
    "24+4": {},
    "12+2": {"num_tiv": 12, "num_tv": 2},
    "6+1": {"num_tiv": 6, "num_tv": 1},
    "24+4, integer codes": {"quantizer": "fsq", "fsq_levels": (8, 5, 5, 5)},
}
RATES = {"learning_rate": 2e-3, "muon_learning_rate": 0.05}
# Of the nested model: those of the fixed ones, one kind of token spared alone, and between.
BUDGETS = ((24, 4), (12, 2), (6, 1), (18, 3), (3, 1), (24, 1), (6, 4))
TARGETS = (14.0, 13.0, 15.0)  # dB
TARGET_CLIPS = 8  # of the test clips: choosing decodes each many times


def token_budget(
    folder: Annotated[Path, typer.Argument(help="Keeps the trained models; those that are there are not trained.")],
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = 800,
    batch: Annotated[int, typer.Option(min=2, help="Chunks in a step.")] = 16,
) -> None:
    """Nested tokens at any budget, fixed models at three, targets in dB, and integer codes. Goes on where it stopped.

    Example: python -m benchmarks.studies token-budget runs/token-budget
    """
    test = moving_discs(np.random.default_rng(TEST_SEED), TEST_CLIPS, TEST_FRAMES)
    settings = {
        "steps": steps,
        "batch": batch,
        "model": MODEL.to_dict(),
        "trials": TRIALS,
        "budgets": BUDGETS,
        "targets": TARGETS,
    }
    record = Record.open(results / "token-budget.json.gz", settings)
    paths = {name: folder / f"{name} {steps}x{batch}" for name in TRIALS}
    for name, path in paths.items():
        if not path.exists():
            begun = time.process_time()
            train(MODEL.replace(**TRIALS[name]), SHARE, steps, batch, seed=0).save_pretrained(path)
            out.print(f"trained {name}: {time.process_time() - begun:.0f} s")
    for name, path in paths.items():
        measure(TivTok.from_pretrained(path), test, name, record)
    with replacing(beside(record.path, ".md")) as temporary:
        temporary.write_text(report(record.settings, record.measured))
    out.print(f"wrote {record.path} and .md", soft_wrap=True)


def train(config: TivTokConfig, share: float, steps: int, batch: int, seed: int) -> TivTok:
    """Through the mean TIV set of two chunks; where tokens are nested, a ``share`` of the steps decodes the first."""
    torch.manual_seed(seed)
    model, rng = TivTok(config), np.random.default_rng(seed)

    def loss() -> Tensor:
        budget = None
        if config.nested and rng.random() < share:
            budget = int(rng.integers(1, config.num_tiv + 1)), int(rng.integers(1, config.num_tv + 1))
        video = moving_discs(rng, batch // 2, 2 * config.chunk_frames)
        return F.mse_loss(model(video, budget=budget), video)

    minimise(loss, model, steps, RATES)
    return model


@torch.no_grad()
def measure(model: TivTok, test: Tensor, name: str, record: Record) -> None:
    """What is not in the record: by budget, and of a nested model by target; see `_quality` and `_target`."""
    config = model.config
    its = record.measured.get(name, {"budgets": {}, "targets": {}})
    for num_tiv, num_tv in BUDGETS if config.nested else ((config.num_tiv, config.num_tv),):
        if (key := f"{num_tiv}+{num_tv}") not in its["budgets"]:
            limits = {"num_tiv": num_tiv, "num_tv": num_tv} if config.nested else {}
            its["budgets"][key] = _quality(model, test, limits)
            record.add(name, its)
            out.print(f"{name}, {key}: {its['budgets'][key]}")
    for target in TARGETS if config.nested else ():
        if (key := f"{target:g}") not in its["targets"]:
            its["targets"][key] = _target(model, test, target)
            record.add(name, its)
            out.print(f"{name}, {key} dB: {its['targets'][key]}")


def _quality(model: TivTok, test: Tensor, limits: dict[str, int]) -> dict[str, float]:
    """Tokens and dB with one TIV set of the first 16, 32 and 64 frames, and the dB of the worst frame groups."""
    values: dict[str, float] = {}
    for frames in (16, 32, 64):
        clip = test[:, :, :frames]
        tokens = model.encode(clip, **limits)
        decoded = model.decode(tokens)
        values |= {f"tokens, {frames}": tokens.num_tokens, f"dB, {frames}": round(psnr(decoded, clip), 3)}
    return values | {"worst tenth, 64": round(_worst_tenth(group_psnr(decoded, clip)), 3)}


def _target(model: TivTok, test: Tensor, target: float) -> dict[str, float]:
    """Means over clips of 64 frames, each with one TIV set and as many tokens as reach ``target`` in each group."""
    test = test[:TARGET_CLIPS]
    made = [model.encode(clip[None], psnr=target) for clip in test]
    decoded = torch.cat([model.decode(tokens) for tokens in made])
    groups = group_psnr(decoded, test)
    return {
        "tokens": round(float(np.mean([tokens.num_tokens for tokens in made])), 2),
        "fewest": min(tokens.num_tokens for tokens in made),
        "most": max(tokens.num_tokens for tokens in made),
        "dB": round(psnr(decoded, test), 3),
        "worst tenth": round(_worst_tenth(groups), 3),
        "reached": round(float((groups >= target - 1e-3).float().mean()), 4),
    }


def group_psnr(a: Tensor, b: Tensor) -> Tensor:
    """(clips * frame groups,) dB."""
    errors = (a.clamp(-1, 1) - b).square().unflatten(2, (-1, FULL.frames_per_group)).mean((1, 3, 4, 5))
    return 10 * torch.log10(4 / errors).flatten()


def _worst_tenth(values: Tensor) -> float:
    """What a tenth of the values are below."""
    return float(values.quantile(0.1))


def report(settings: dict[str, Any], measured: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        "# Token budgets",
        "",
        "Written by `python -m benchmarks.studies token-budget FOLDER`: 32x32 clips of a smooth background and two "
        f"discs, models of width {settings['model']['width']}, {settings['steps']} steps of {settings['batch']} "
        f"chunks, one seed. {TEST_CLIPS} test clips with one TIV set each. *Worst tenth*: a tenth of the frame groups "
        "of 64 frames have less.",
        "",
        "| TIV + TV tokens | model | tokens, 64 frames | dB, 16 frames | 32 | 64 | worst tenth |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {name: f"for {name}" for name in measured} | {NESTED: "for any number"}
    rows = [(*row, names[name]) for name, its in measured.items() for row in its["budgets"].items()]
    for budget, values, name in sorted(rows, key=lambda row: -row[1]["tokens, 64"]):
        numbers = [f"{values[f'dB, {frames}']:.2f}" for frames in (16, 32, 64)]
        lines.append(
            f"| {budget} | {name} | {values['tokens, 64']} | {' | '.join(numbers)} | {values['worst tenth, 64']:.2f} |"
        )
    lines += [
        "",
        f"The model for any number with a target in dB for every frame group, {TARGET_CLIPS} clips of 64 frames: as "
        "many TIV tokens a clip and TV tokens a group as that takes, all of them where it cannot be reached.",
        "",
        "| target | tokens, mean | fewest to most | dB, mean | worst tenth | groups that reach it |",
        "|---|---|---|---|---|---|",
    ]
    targets = measured.get(NESTED, {}).get("targets", {})
    for target, values in sorted(targets.items(), key=lambda row: float(row[0])):
        lines.append(
            f"| {target} dB | {values['tokens']:.1f} | {values['fewest']} to {values['most']} | {values['dB']:.2f} | "
            f"{values['worst tenth']:.2f} | {values['reached']:.0%} |"
        )
    return "\n".join(lines) + "\n"
