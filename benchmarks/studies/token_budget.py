"""One model for any number of tokens beside a model for each number, and integer codes beside free values.

Small models on synthetic motion (`benchmarks.studies.synthetic_motion`), all trained alike.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from benchmarks.dumps import beside
from benchmarks.studies.record import Record
from benchmarks.studies.synthetic_motion import SIDE, TEST_CLIPS, TEST_FRAMES, TEST_SEED, moving_discs, psnr
from tivtok.files import replacing
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.training.config import TrainConfig
from tivtok.training.state import load_state, save_state
from tivtok.training.trainer import Trainer

out = Console(highlight=False, markup=False)

MODEL = TivTokConfig(
    name="budget",
    num_tiv=24,
    num_tv=4,
    latent_dim=32,
    width=96,
    heads=3,
    encoder_layers=2,
    decoder_layers=2,
    native_size=(SIDE, SIDE),
    qk_norm=True,
    rope_theta=20.0,
    latent_positions="grid",
    encoder_time="none",
    initialization="local",
)
NESTED = "any number"
TRIALS: dict[str, dict[str, Any]] = {
    NESTED: {"nested": True},
    "24+4": {},
    "12+2": {"num_tiv": 12, "num_tv": 2},
    "6+1": {"num_tiv": 6, "num_tv": 1},
    "24+4, integer codes": {"quantizer": "fsq", "fsq_levels": (8, 5, 5, 5)},
}
SHARE = 0.5  # of the nested model's steps, with fewer tokens
CHUNKS = 2  # of a training clip, which share a TIV set
# Of the nested model: those of the fixed ones, one kind of token spared alone, and between.
BUDGETS = ((24, 4), (18, 3), (12, 2), (6, 1), (3, 1), (1, 1), (24, 1), (6, 4))
TARGETS = (16.0, 18.0, 20.0)  # dB
TARGET_CLIPS = 8  # of the test clips: choosing decodes each many times
SAVE_EVERY = 100  # steps


def token_budget(
    folder: Annotated[Path, typer.Argument(help="Keeps the trained models; those that are there are not trained.")],
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = 700,
    batch: Annotated[int, typer.Option(min=1, help="Clips of two chunks in a step.")] = 4,
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
        "share": SHARE,
        "budgets": BUDGETS,
        "targets": TARGETS,
    }
    record = Record.open(results / "token-budget.json.gz", settings)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name} {steps}x{batch}" for name in TRIALS}
    for name, path in paths.items():
        if not path.exists():
            begun = time.process_time()
            train(recipe(name, steps, batch), path.with_suffix(".safetensors")).save_pretrained(path)
            out.print(f"trained {name}: {time.process_time() - begun:.0f} s")
    for name, path in paths.items():
        measure(TivTok.from_pretrained(path), test, name, record)
    with replacing(beside(record.path, ".md")) as temporary:
        temporary.write_text(report(record.settings, record.measured))
    plot(record.measured, beside(record.path, ".png"))
    out.print(f"wrote {record.path}, .md and .png", soft_wrap=True)


def recipe(name: str, steps: int, batch: int) -> TrainConfig:
    """How the model of a trial is trained. Clips come from `moving_discs`, and there is no data."""
    model = MODEL.replace(**TRIALS[name])
    return TrainConfig(
        output=Path(),
        data=Path(),
        model=model,
        steps=steps,
        batch_size=batch,
        chunks=CHUNKS,
        nested=SHARE if model.nested else 0.0,
        reconstruction="mse",
        optimizer="muon",
        learning_rate=4e-3,
        muon_learning_rate=0.03,
        warmup_steps=steps // 20,
        ema=0.99,
        precision="bfloat16",
    )


def train(config: TrainConfig, kept: Path) -> TivTok:
    """The trained model with averaged weights.

    Args:
        kept: the state of the run every `SAVE_EVERY` steps, from which it goes on; gone once it is over.
    """
    trainer, done = Trainer(config, Accelerator(cpu=True, mixed_precision="no")), 0
    if kept.exists():
        state, counts = load_state(kept)
        trainer.restore(state)
        done = counts["step"]
    for step in range(done, config.steps):
        video = moving_discs(np.random.default_rng((config.seed, step)), config.batch_size, config.clip_frames)
        stats = trainer.step(video, step)
        if (step + 1) % SAVE_EVERY == 0:
            save_state(kept, trainer.state(), {"step": step + 1, "bad_steps": trainer.bad_steps})
            out.print(f"step {step + 1}: {stats}")
    model = TivTok(config.model)
    with trainer.average.applied():
        model.load_state_dict(trainer.model.state_dict())
    kept.unlink(missing_ok=True)
    return model.eval()


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
    if config.nested and not its["targets"]:
        test = test[:TARGET_CLIPS]
        uniform = by_uniform_budget(model, test)
        its["targets"] = {f"{target:g}": _target(model, test, target, uniform) for target in TARGETS}
        record.add(name, its)
        out.print(f"{name}, by target: {its['targets']}")


def _quality(model: TivTok, test: Tensor, limits: dict[str, int]) -> dict[str, float]:
    """Tokens and dB with one TIV set of the first 16, 32 and 64 frames, and the dB of the worst frame groups."""
    values: dict[str, float] = {}
    for frames in (16, 32, 64):
        clip = test[:, :, :frames]
        tokens = model.encode(clip, **limits)
        decoded = model.decode(tokens)
        values |= {f"tokens, {frames}": tokens.num_tokens, f"dB, {frames}": round(psnr(decoded, clip), 3)}
    return values | {"worst tenth, 64": round(_worst_tenth(group_psnr(decoded, clip)), 3)}


def by_uniform_budget(model: TivTok, test: Tensor) -> dict[int, Tensor]:
    """Of tokens of a clip, the same number in all clips and groups -> (ways to divide it, frame groups) dB."""
    tokens, config = model.encode(test), model.config
    ways: dict[int, list[Tensor]] = {}
    for num_tiv in range(1, config.num_tiv + 1):
        for num_tv in range(1, config.num_tv + 1):
            cut = model.cut(tokens, num_tiv, num_tv)
            ways.setdefault(cut.num_tokens, []).append(group_psnr(model.decode(cut), test))
    return {number: torch.stack(groups) for number, groups in sorted(ways.items())}


def _target(model: TivTok, test: Tensor, target: float, uniform: dict[int, Tensor]) -> dict[str, Any]:
    """Means over clips of 64 frames, each with one TIV set and as many tokens as reach ``target`` in each group, and
    the fewest tokens of `by_uniform_budget` with which as many groups reach it."""
    made = [model.encode(clip[None], psnr=target) for clip in test]
    decoded = torch.cat([model.decode(tokens) for tokens in made])
    groups = group_psnr(decoded, test)
    reached = _reached(groups, target)
    return {
        "tokens": round(float(np.mean([tokens.num_tokens for tokens in made])), 2),
        "fewest": min(tokens.num_tokens for tokens in made),
        "most": max(tokens.num_tokens for tokens in made),
        "dB": round(psnr(decoded, test), 3),
        "worst tenth": round(_worst_tenth(groups), 3),
        "reached": round(reached, 4),
        "uniform": next((n for n, ways in uniform.items() if max(_reached(x, target) for x in ways) >= reached), None),
    }


def _reached(groups: Tensor, target: float) -> float:
    """The share of frame groups that reach it."""
    return float((groups >= target - 1e-3).float().mean())


def group_psnr(a: Tensor, b: Tensor) -> Tensor:
    """(clips * frame groups,) dB."""
    errors = (a.clamp(-1, 1) - b).square().unflatten(2, (-1, MODEL.frames_per_group)).mean((1, 3, 4, 5))
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
        f"discs, models of width {settings['model']['width']}, {settings['steps']} steps of {settings['batch']} clips "
        f"of {CHUNKS} chunks, one seed; {settings['share']:.0%} of the steps of the model for any number with fewer "
        f"tokens. {TEST_CLIPS} test clips with one TIV set each. *Worst tenth*: a tenth of the frame groups "
        "of 64 frames have less.",
        "",
        "![dB against tokens](token-budget.png)",
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
        "many TIV tokens a clip and TV tokens a group as that takes, as good as all of them where it cannot be "
        "reached. *Uniform*: the fewest tokens of a clip with which as many groups reach it if all clips and all "
        "groups have the same numbers.",
        "",
        "| target | tokens, mean | fewest to most | uniform | dB, mean | worst tenth | groups that reach it |",
        "|---|---|---|---|---|---|---|",
    ]
    targets = measured.get(NESTED, {}).get("targets", {})
    for target, values in sorted(targets.items(), key=lambda row: float(row[0])):
        lines.append(
            f"| {target} dB | {values['tokens']:.1f} | {values['fewest']} to {values['most']} | "
            f"{values['uniform'] or '-'} | {values['dB']:.2f} | {values['worst tenth']:.2f} | {values['reached']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def plot(measured: dict[str, Any], path: Path) -> None:
    """dB of 64 frames against their tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, its in measured.items():
        points = sorted((x["tokens, 64"], x["dB, 64"], budget) for budget, x in its["budgets"].items())
        tokens, quality, budgets = zip(*points, strict=True)
        axis.plot(tokens, quality, "o" if name == NESTED else "s", label=f"a model for {name}")
        for x, y, budget in zip(tokens, quality, budgets, strict=True) if name == NESTED else ():
            axis.annotate(budget, (x, y), (4, -10), textcoords="offset points", fontsize=7)
    chosen = measured.get(NESTED, {}).get("targets", {}).values()
    axis.plot(
        [x["tokens"] for x in chosen],
        [x["dB"] for x in chosen],
        "k*",
        label=f"any number, by target ({TARGET_CLIPS} clips)",
    )
    axis.set(xlabel="tokens of a clip of 64 frames", ylabel="PSNR in dB (mean)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
