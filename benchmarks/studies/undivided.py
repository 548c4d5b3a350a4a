"""The baseline that the division into TIV and TV tokens is to beat: one set of tokens per chunk, all of which see all.

Its encoder is dense and its decoder joint, as of tokenizers that code a chunk as a whole (VFRTok, LARP). It has as many
tokens, layers and channels as the divided model, and is trained on the same clips for as many steps of as many chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.cards.baseline import still
from benchmarks.dumps import beside, read_json, write_json
from benchmarks.studies.ablation_variants import build
from benchmarks.studies.factorisation import LENGTHS, Clip, bucket, load, means_by_bucket, psnr, quality
from benchmarks.studies.record import fingerprint
from tivtok.checkpoints import find_checkpoint, load_checkpoint
from tivtok.files import replacing
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.training.config import TrainConfig
from tivtok.training.loop import train

UNDIVIDED = "undivided"
# Of each row measured: its title, and how many TIV sets' tokens it takes (None: one per chunk).
ROWS: dict[str, tuple[str, int | None]] = {
    "one set": ("TivTok, one TIV set", 1),
    "own sets": ("TivTok, a TIV set per chunk", None),
    UNDIVIDED: ("undivided", None),
    "resampling, numbers of one set": ("resampling, numbers of one set", 1),
    "resampling, numbers of own sets": ("resampling, numbers of a set per chunk", None),
    "DCT, numbers of one set": ("DCT, numbers of one set", 1),
    "DCT, numbers of own sets": ("DCT, numbers of a set per chunk", None),
}
# What is drawn: the rows that a line joins for each length.
LINES = {
    "TivTok, from one TIV set to one per chunk": ("one set", "own sets"),
    "undivided": (UNDIVIDED,),
    "resampling to as many numbers": ("resampling, numbers of one set", "resampling, numbers of own sets"),
    "as many DCT coefficients": ("DCT, numbers of one set", "DCT, numbers of own sets"),
}

out = Console(highlight=False, markup=False)


def train_undivided(
    config: Annotated[Path, typer.Argument(help="The divided model's training config.")],
    changes: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as of `tivtok train`.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/undivided"),
) -> None:
    """Train the undivided baseline of a config; the same command goes on where it was stopped.

    Example: python -m benchmarks.studies train-undivided tivtok/training/configs/tiny.toml --set data=clips
    """
    divided = TrainConfig.load(config, changes or [])
    folder = train(replace(undivided_run(divided), output=output), build_undivided)
    out.print(f"trained {folder}", soft_wrap=True)


def undivided(
    data: Annotated[Path, typer.Option(help="A folder of clips, as of the study `factorisation`.")],
    model: Annotated[Path, typer.Option(help="The divided model's checkpoint.")],
    baseline: Annotated[Path, typer.Option(help="The undivided one's, of `train-undivided` with the same config.")],
    only: Annotated[list[str] | None, typer.Option(help="Name patterns of the clips; all by default.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers and the picture go.")] = Path("docs/results"),
    name: Annotated[str, typer.Option(help="Of the files with the results.")] = "undivided",
    note: Annotated[str, typer.Option(help="Kept with the numbers: what the clips are.")] = "",
) -> None:
    """Quality against tokens with and without a division, by length; resampling and DCT beside.

    Example: python -m benchmarks.studies undivided --data clips/ --model runs/tiny/checkpoint --baseline
    runs/undivided/checkpoint
    """
    divided, whole = TivTok.from_pretrained(model), load_undivided(baseline)
    clips = load(data, divided, only or ["*"])
    measured = measure(divided, whole, clips)
    settings = {
        "model": divided.config.to_dict(),
        "model_id": divided.model_id,
        "baseline_id": whole.model_id,
        "videos": fingerprint(data),
        "only": only,
        "data": note,
    }
    path = results / f"{name}.json.gz"
    write_json(path, {"settings": settings, "measured": measured, "summary": means_by_bucket(measured)})
    write_report(path)
    out.print(f"wrote {path}, .md and .png", soft_wrap=True)


def undivided_run(config: TrainConfig) -> TrainConfig:
    """The same run for a model without a division: all tokens of a chunk are one set, no two chunks share one."""
    divided = config.model
    tokens = divided.num_tokens(divided.chunk_frames)
    # Tokens that are of no frame group must be told the time.
    model = divided.replace(name=UNDIVIDED, num_tiv=tokens, num_tv=0, encoder_time="rotary")
    return replace(config, model=model, chunks=1, siblings=0.0, without_tv=0.0)


def build_undivided(config: TivTokConfig) -> TivTok:
    return build(config, dense_encoder=True, joint_decoder=True)


def load_undivided(path: str | Path) -> TivTok:
    """Load what `train_undivided` made.

    Raises:
        ValueError: the checkpoint is of a model with TV tokens.
        CheckpointError: there is none.
    """
    checkpoint = load_checkpoint(find_checkpoint(path))
    if checkpoint.config.num_tv:
        raise ValueError(f"baseline must be a model without TV tokens, got {path} with {checkpoint.config.num_tv}")
    model = build_undivided(checkpoint.config)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


@torch.no_grad()
def measure(divided: TivTok, whole: TivTok, clips: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """By the clip's name: its source, its bucket, and by length dB of the ways of `quality` and without a division."""
    step = divided.config.chunk_frames
    first = [clip.video[:, :, :step] for clip in clips]
    measured: dict[str, dict[str, Any]] = {
        clip.name: {"source": clip.source, "bucket": bucket(psnr(still(video), video))}
        for clip, video in zip(clips, first, strict=True)
    }
    videos = {clip.name: clip.video for clip in clips}
    for frames in (step, *(length for length in LENGTHS if length > step)):
        for name, values in quality(divided, clips, frames).items():
            video = videos[name][:, :, :frames]
            decoded = whole.decode(whole.encode(video, tiv_sets=frames // step))
            measured[name][str(frames)] = values | {UNDIVIDED: round(psnr(decoded, video), 4)}
    return measured


def write_report(path: Path) -> None:
    """The tables and the picture of a results file, beside it."""
    record = read_json(path)
    summary, settings = record["summary"], record["settings"]
    config = TivTokConfig.from_dict(settings["model"])
    buckets = [name for name in ("all", "moving", "still") if name in summary]
    lines = [
        "# Quality against tokens, with and without a division",
        "",
        f"Written by `python -m benchmarks.studies undivided`. {settings['data']} Model {config.name}, id "
        f"`{settings['model_id']}`, beside an undivided one, id `{settings['baseline_id']}`, of the same size, "
        "steps and clips. PSNR in dB, means over sources of their clips' means.",
    ]
    for frames in _lengths(summary):
        of = [f"{name} ({summary[name][frames]['clips']} clips)" for name in buckets if frames in summary[name]]
        lines += ["", f"| {frames} frames | tokens per frame | {' | '.join(of)} |", f"|---|---|{'---|' * len(of)}"]
        for row, (title, sets) in ROWS.items():
            values = [f"{summary[name][frames][row]:.2f}" for name in buckets if frames in summary[name]]
            lines.append(f"| {title} | {_tokens(config, int(frames), sets):.2f} | {' | '.join(values)} |")
        values = [f"{summary[name][frames]['still picture']:.2f}" for name in buckets if frames in summary[name]]
        lines.append(f"| still picture, without loss | | {' | '.join(values)} |")
    lines += ["", f"![PSNR against tokens per frame]({beside(path, '.png').name})"]
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    plot(summary, config, beside(path, ".png"))


def plot(summary: dict[str, dict[str, Any]], config: TivTokConfig, path: Path) -> None:
    """PSNR against the tokens of a video, for each length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in ("all", "moving") if name in summary]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 4.4), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        for number, (title, rows) in enumerate(LINES.items()):
            for length in _lengths(summary):
                tokens = [int(length) * _tokens(config, int(length), ROWS[row][1]) for row in rows]
                decibels = [summary[name][length][row] for row in rows]
                axis.plot(tokens, decibels, f"C{number}{'o^xs'[number]}-", label=title if length == "16" else None)
        axis.set(title=f"{name} clips", xlabel="tokens of the video", ylabel="PSNR, dB", xscale="log")
        own = {int(length): round(int(length) * _tokens(config, int(length), None)) for length in _lengths(summary)}
        axis.set_xticks([*own.values()], [f"{tokens}\n{length} frames" for length, tokens in own.items()], fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    handles, titles = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=2, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def _lengths(summary: dict[str, dict[str, Any]]) -> list[str]:
    """Numbers of frames that were measured, of clips of all kinds."""
    return sorted((key for key in summary["all"] if key.isdigit()), key=int)


def _tokens(config: TivTokConfig, frames: int, sets: int | None) -> float:
    """Tokens per frame with so many TIV sets; None: with one per chunk."""
    return config.num_tokens(frames, frames // config.chunk_frames if sets is None else sets) / frames
