"""``tivtok eval``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, NamedTuple, cast, get_args

import typer

from tivtok.cli.measuring import Kept, Measurer, Video, name_of
from tivtok.cli.options import (
    CompileOption,
    DeviceOption,
    ModelOption,
    Precision,
    PrecisionOption,
    RefineOption,
    StrictOption,
    TivSetsOption,
    parse_tiv_sets,
)
from tivtok.cli.output import CommandError, check_output, say, say_left_out, track, warn
from tivtok.cli.summary import JsonOption, Summary
from tivtok.metrics import PROTOCOL
from tivtok.metrics.evaluation import Evaluation
from tivtok.metrics.protocols import PROTOCOLS, Features, Protocol
from tivtok.processes import each
from tivtok.video import LeftOut, VideoError
from tivtok.video.sources import LISTS, VideoRef, find_sources

_published = ", ".join(f'"{name}"' for name in PROTOCOLS if name != "whole")
METRICS = ("psnr", "ssim", "lpips-vgg", "lpips-alex", "rfvd")
# Scores of each video, and their titles.
COLUMNS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "lpips-vgg": "LPIPS-VGG",
    "lpips-alex": "LPIPS-Alex",
    "seams": "seams",
    "seams_original": "in original",
}
SEAMS = "mean |change| from frame to frame across chunk borders over that inside chunks, nan where there is none"


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="VIDEO|FOLDER|LIST...", help="Videos, folders of them, or lists: .csv or .parquet."),
    ],
    model: ModelOption = "tiny",
    protocol: Annotated[
        str,
        typer.Option(help=f'"whole" (every frame), or a published one: {_published}.'),
    ] = "whole",
    metrics: Annotated[
        str, typer.Option(help='"all", or some of psnr, ssim, lpips-vgg, lpips-alex, rfvd, with commas.')
    ] = "psnr,ssim",
    size: Annotated[
        str,
        typer.Option(help='"protocol", "source", "native" (what the model was trained at) or WIDTHxHEIGHT.'),
    ] = "protocol",
    features: Annotated[str, typer.Option(help='Of rFVD: "protocol", "logits" or "torchscript".')] = "protocol",
    weights: Annotated[
        Path | None, typer.Option(help="The folder of the metrics' weights, instead of that of `tivtok weights`.")
    ] = None,
    json_file: JsonOption = None,
    tiv_sets: TivSetsOption = "1",
    refine: RefineOption = 0,
    workers: Annotated[int, typer.Option(min=1, help="Videos measured at a time, each in its own process.")] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep what is measured of each video in this file; the same command then goes on."),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    compile: CompileOption = False,
    strict: StrictOption = False,
) -> None:
    """Measure PSNR, SSIM, LPIPS and rFVD of reconstructions, and seams.

    Seams are the change across chunk borders over the change inside chunks.

    What is no video in a folder or a list, or cannot be read, is left out of the means and reported; a file that is
    named must be readable. Each video, or part of one, counts once. LPIPS and rFVD need weights: run `tivtok weights`
    once. Scores of different protocols do not compare.

    Example: tivtok eval clips/ --model runs/mine --protocol larp --metrics all --json scores.json
    """
    summary = Summary("eval", json_file)
    if keep is not None:
        check_output(keep)
    found = _videos(paths)
    rules = _parse_protocol(protocol, features)
    if size == "protocol":
        size = rules.size_text
    sets, wanted = parse_tiv_sets(tiv_sets), frozenset(_parse_metrics(metrics))
    alone = workers == 1
    measurer = Measurer(model, device, precision, compile, rules, wanted, weights, size, sets, refine, strict, alone)
    tokenizer, _ = measurer.load()
    settings = {"protocol": asdict(rules) | {"size": size}, "tiv_sets": tiv_sets, "refine": refine}
    depends = {"metrics": sorted(wanted), "model": tokenizer.model_id, "precision": precision.value, "strict": strict}
    kept = Kept(keep, settings | depends)

    shown = wanted | ({"seams", "seams_original"} if rules.clip == "all" else set())
    columns = {name: title for name, title in COLUMNS.items() if name in shown}
    say("".join(f"{title:>13}" for title in columns.values()) + "  frames  tokens  video")
    to_do = [ref for ref in found.refs if name_of(ref) not in kept.videos]
    _say_videos([kept.videos[name_of(ref)] for ref in found.refs if name_of(ref) in kept.videos], columns)
    measured = each(to_do, [measurer] * workers)
    for video in measured if alone else track(measured, "measuring", len(to_do), "videos", lambda video: 1):
        if video.measured is None and video.name in found.required:
            raise VideoError(video.error)
        kept.add(video)
        _say_videos([video], columns)

    videos = [kept.videos[name_of(ref)] for ref in found.refs]
    total = Evaluation(rules, {}, None)
    for video in videos:
        if video.measured is not None:
            total.take(video.measured)
    if not total.videos:
        raise CommandError(f"none of the {len(videos)} videos could be read")
    if "rfvd" in wanted and total.clips < 2:
        raise CommandError(f"rFVD needs two clips of {rules.frames} frames at least, got {total.clips}")
    means = total.means()
    say(f"{_row(means, columns)}                  mean of {len(total.videos)}")
    if "rfvd" in means:
        say(f"rFVD {means['rfvd']:.2f} of {total.clips} clips (few clips bias it upwards)")
    _print_protocol(rules, size, protocol)
    say(f"model {tokenizer.config.name}, id {tokenizer.model_id}, {size} size, {tiv_sets} TIV set(s)")
    for video in videos:
        warn(video.damage)
    read = [video for video in videos if video.measured is not None]
    lost = [LeftOut(Path(video.name), video.error) for video in videos if video.measured is None]
    results = {
        "rfvd_clips": total.clips,
        "scores": means,
        "videos": {
            video.name: video.measured.scores | {"frames": video.frames, "tokens": video.tokens}
            for video in read
            if video.measured is not None
        },
        "left_out": [{"path": str(path), "reason": reason} for path, reason in found.left_out + lost],
    }
    frames, tokens = (sum(getattr(video, name) for video in read) for name in ("frames", "tokens"))
    summary.write(tokenizer, None, len(read), frames, tokens, len(lost), settings | results)


class _Found(NamedTuple):
    """The videos to measure, each once; names of those that must be readable; and what is beside them."""

    refs: list[VideoRef]
    required: set[str]
    left_out: list[LeftOut]


def _videos(paths: list[Path]) -> _Found:
    """What folders and lists hold beside videos is said here."""
    refs: dict[str, VideoRef] = {}
    required: set[str] = set()
    left_out: list[LeftOut] = []
    for path in paths:
        if path.is_dir() or path.suffix.lower() in LISTS:
            found = find_sources(path)
            say_left_out(found.left_out)
            refs |= {name_of(ref): ref for ref in found.videos}
            left_out += found.left_out
        else:
            refs[str(path)] = VideoRef(path.name, path)
            required.add(str(path))
    return _Found(list(refs.values()), required, left_out)


def _say_videos(videos: list[Video], columns: dict[str, str]) -> None:
    for video in videos:
        if video.measured is None:
            say(f"left out {video.name}: {video.error}")
        else:
            say(f"{_row(video.measured.scores, columns)}  {video.frames:6}  {video.tokens:6}  {video.name}")


def _parse_metrics(text: str) -> set[str]:
    wanted = set(METRICS if text == "all" else text.split(","))
    if unknown := wanted - set(METRICS):
        raise CommandError(f'--metrics must be "all" or some of {", ".join(METRICS)}, got "{min(unknown)}"')
    return wanted


def _parse_protocol(name: str, features: str) -> Protocol:
    if name not in PROTOCOLS:
        raise CommandError(f'--protocol must be one of {", ".join(PROTOCOLS)}, got "{name}"')
    if features == "protocol":
        return PROTOCOLS[name]
    if features not in get_args(Features):
        raise CommandError(f'--features must be "protocol", "logits" or "torchscript", got "{features}"')
    return replace(PROTOCOLS[name], features=cast(Features, features))


def _row(scores: dict[str, float], columns: dict[str, str]) -> str:
    digits = {"psnr": 2, "seams": 2, "seams_original": 2}
    return "".join(f"{scores[name]:13.{digits.get(name, 4)}f}" for name in columns)


def _print_protocol(rules: Protocol, size: str, name: str) -> None:
    published = PROTOCOLS[name]
    changed = ["features"] * (rules.features != published.features)
    changed += ["size"] * (published.size is not None and size != published.size_text)
    note = f" (CHANGED: {', '.join(changed)})" if changed else ""
    say(f"protocol {rules}{note}")
    seams = f"; seams: {SEAMS}" if rules.clip == "all" else ""
    say(f"scores: {PROTOCOL}{seams}; mean of the videos' means")
