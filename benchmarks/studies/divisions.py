"""Numbers divided between TIV and TV tokens, by a code that needs no training (`benchmarks.cards.divided_dct`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.cards.baseline import best_resampling
from benchmarks.cards.divided_dct import DividedDct
from benchmarks.dumps import beside, write_json
from benchmarks.studies.factorisation import LENGTHS, Clip, bucket, load, means_over_sources, psnr, still
from benchmarks.studies.record import fingerprint
from tivtok.files import replacing
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok

DIVISIONS = ("16+6", "20+5", "24+4", "28+3", "24+8", "30+5", "32+8", "36+6")

out = Console(highlight=False, markup=False)


def divisions(
    data: Annotated[Path, typer.Option(help="A folder of clips, one scene each; FOO__f0064.mp4 is of the source FOO.")],
    only: Annotated[list[str] | None, typer.Option(help="Name patterns of the clips; all by default.")] = None,
    tokens: Annotated[list[str] | None, typer.Option(help="TIV+TV tokens, such as 24+4.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers go.")] = Path("docs/results"),
    name: Annotated[str, typer.Option(help="Of the files with the results.")] = "divisions",
    note: Annotated[str, typer.Option(help="Kept with the numbers: what the clips are.")] = "",
) -> None:
    """Quality of divided cosine coefficients by numbers of TIV and TV tokens, one set or one per chunk.

    Example: python -m benchmarks.studies divisions --data clips/ --tokens 24+4 --tokens 30+5
    """
    config = TivTokConfig.preset("tiny")
    clips = load(data, TivTok(config), only or ["*"])
    pairs = [tuple(int(part) for part in each.split("+")) for each in tokens or DIVISIONS]
    measured = {
        f"{tiv}+{tv}": measure(config.replace(num_tiv=tiv, num_tv=tv), clips)
        for tiv, tv in track(pairs, description="dividing")
    }
    settings = {"videos": fingerprint(data), "only": only, "data": note, "latent_dim": config.latent_dim}
    path = results / f"{name}.json.gz"
    write_json(path, {"settings": settings, "measured": measured})
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text(report(settings, measured))
    out.print(f"wrote {path} and .md", soft_wrap=True)


def measure(config: TivTokConfig, clips: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """By length: dB, means over sources of the means of their clips, of each row, of all clips and of moving ones."""
    follows, stays, step = DividedDct(config), DividedDct(config, follows=False), config.chunk_frames
    measured = {}
    for frames in (step, *(length for length in LENGTHS if length > step)):
        long = [clip for clip in clips if clip.video.shape[2] >= frames]
        if not long:
            continue
        videos = torch.cat([clip.video[:, :, :frames] for clip in long])
        rows = {
            "one set": follows(videos, 1),
            "one set, TV of the chunk's own": stays(videos, 1),
            "own sets": follows(videos, frames // step),
            "resampling": best_resampling(videos, config.num_tokens(frames) * config.latent_dim)[1],
        }
        of_clips = [
            {"source": clip.source} | {row: psnr(x[at], videos[at]) for row, x in rows.items()}
            for at, clip in enumerate(long)
        ]
        first = videos[:, :, :step]
        moves = [bucket(psnr(still(video[None]), video[None])) != "still" for video in first]
        moving = means_over_sources([values for values, does in zip(of_clips, moves, strict=True) if does])
        measured[str(frames)] = means_over_sources(of_clips) | {f"{row}, moving": x for row, x in moving.items()}
    return measured


def report(settings: dict[str, Any], measured: dict[str, dict[str, Any]]) -> str:
    lengths = list(next(iter(measured.values())))
    lines = [
        "# Dividing numbers between TIV and TV tokens",
        "",
        f"Cosine coefficients for tokens of {settings['latent_dim']} numbers, PSNR in dB. {settings['data']}",
        "",
        "Written by `python -m benchmarks.studies divisions`; docs/factorisation.md says what the words mean.",
    ]
    for frames in lengths:
        lines += [
            "",
            f"| {frames} frames: TIV + TV | all | above resampling | lost by sharing | the same, TV of the "
            "chunk's own | moving | moving, lost by sharing |",
            "|---|---|---|---|---|---|---|",
        ]
        for division, of_length in measured.items():
            x = of_length[frames]
            cells = (
                x["one set"],
                x["one set"] - x["resampling"],
                x["own sets"] - x["one set"],
                x["own sets"] - x["one set, TV of the chunk's own"],
                x["one set, moving"],
                x["own sets, moving"] - x["one set, moving"],
            )
            lines.append(f"| {division.replace('+', ' + ')} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join(lines) + "\n"
