"""``tivtok eval``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from torch import Tensor

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
from tivtok.cli.output import CommandError, StepsBar, say, say_left_out, warn
from tivtok.cli.source import Source, compare
from tivtok.cli.summary import JsonOption, Summary
from tivtok.loading import load_model
from tivtok.metrics import PROTOCOL
from tivtok.metrics.evaluation import Evaluation
from tivtok.metrics.i3d import load_i3d
from tivtok.metrics.lpips import LPIPS, Net
from tivtok.metrics.protocols import PROTOCOLS, Features, Protocol, clip_frames, pick_frames
from tivtok.metrics.weights import find_weights
from tivtok.streaming import encode_stream
from tivtok.tokenizer import TivTok
from tivtok.video import LeftOut, VideoError, search_folder

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
    paths: Annotated[list[Path], typer.Argument(metavar="VIDEO|FOLDER...", help="Videos, or folders of them.")],
    model: ModelOption = "tiny",
    protocol: Annotated[
        str,
        typer.Option(help='"whole" (every frame), or a published one: "larp", "adaptok", "omnitokenizer", "paper".'),
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
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    compile: CompileOption = False,
    strict: StrictOption = False,
) -> None:
    """Measure PSNR, SSIM, LPIPS and rFVD of reconstructions, and seams.

    Seams are the change across chunk borders over the change inside chunks.

    What is no video in a folder, or cannot be read, is left out of the means and reported; a file that is named must be
    readable. LPIPS and rFVD need weights: run `tivtok weights` once. Scores of different protocols do not compare.

    Example: tivtok eval clips/ --model runs/mine --protocol larp --metrics all --json scores.json
    """
    summary = Summary("eval", json_file)
    sets = parse_tiv_sets(tiv_sets)
    files, left_out = _files(paths)
    wanted, rules = _parse_metrics(metrics), _parse_protocol(protocol, features)
    tokenizer = load_model(model, device, precision, compile)
    evaluation = _evaluation(rules, wanted, tokenizer, weights)
    if size == "protocol":
        size = "native" if rules.size is None else f"{rules.size[1]}x{rules.size[0]}"

    shown = wanted | ({"seams", "seams_original"} if rules.clip == "all" else set())
    columns = {name: title for name, title in COLUMNS.items() if name in shown}
    say("".join(f"{title:>13}" for title in columns.values()) + "  frames  tokens  video")
    videos, damage, failed = {}, [], 0
    for file in files:
        try:
            source = Source(file, size, tokenizer, strict=strict)
            chunks = source.tracked if rules.clip == "all" else _clip(source, rules)
            with StepsBar("refining") as bar:
                encoded = encode_stream(tokenizer, chunks("encoding"), sets, source.fps, refine, bar.show)
        except VideoError as error:
            if file in paths:
                raise
            left_out.append(LeftOut(file, str(error)))
            failed += 1
            say(f"left out {file}: {error}")
            continue
        pairs = compare(tokenizer, encoded, chunks("decoding"))
        scores = evaluation.add(pairs, encoded.chunk_frames or tokenizer.config.chunk_frames)
        videos[str(file)] = scores | {"frames": encoded.num_frames, "tokens": encoded.num_tokens}
        say(f"{_row(scores, columns)}  {encoded.num_frames:6}  {encoded.num_tokens:6}  {file}")
        damage.append(source.damage())
    if not videos:
        raise CommandError(f"none of the {len(files)} videos could be read")
    means = evaluation.means()
    say(f"{_row(means, columns)}                  mean of {len(videos)}")
    if "rfvd" in means:
        say(f"rFVD {means['rfvd']:.2f} of {evaluation.clips} clips (few clips bias it upwards)")
    _print_protocol(rules, size, protocol)
    say(f"model {tokenizer.config.name}, id {tokenizer.model_id}, {size} size, {tiv_sets} TIV set(s)")
    for line in damage:
        warn(line)
    settings = {
        "protocol": asdict(rules) | {"size": size},
        "tiv_sets": tiv_sets,
        "refine": refine,
        "rfvd_clips": evaluation.clips,
    }
    lost = [{"path": str(path), "reason": reason} for path, reason in left_out]
    results = {"scores": means, "videos": videos, "left_out": lost}
    frames, tokens = (int(sum(video[name] for video in videos.values())) for name in ("frames", "tokens"))
    summary.write(tokenizer, None, len(videos), frames, tokens, failed, settings | results)


def _files(paths: list[Path]) -> tuple[list[Path], list[LeftOut]]:
    """The videos, and what the folders hold beside them, which is said here."""
    files: list[Path] = []
    left_out: list[LeftOut] = []
    for path in paths:
        if path.is_dir():
            found = search_folder(path)
            say_left_out(found.left_out)
            if not found.files:
                raise CommandError(f"there are no videos in {path}")
            files += found.files
            left_out += found.left_out
        else:
            files.append(path)
    return files, left_out


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


def _evaluation(rules: Protocol, wanted: set[str], tokenizer: TivTok, folder: Path | None) -> Evaluation:
    """An evaluation with the networks that the metrics need."""
    device = next(tokenizer.parameters()).device
    nets: dict[str, Net] = {"lpips-vgg": "vgg", "lpips-alex": "alex"}
    lpips = {
        name: LPIPS(net, weights=find_weights(name, folder)).to(device) for name, net in nets.items() if name in wanted
    }
    i3d = None
    if "rfvd" in wanted:
        i3d = load_i3d(find_weights("i3d" if rules.features == "logits" else "i3d-torchscript", folder), device)
    return Evaluation(rules, lpips, i3d)


def _clip(source: Source, rules: Protocol) -> Callable[[str], Iterator[Tensor]]:
    """The frames of a video's clip, in chunks as `Source.tracked` gives them.

    The video is read twice: files' own counts of their frames can be wrong.
    """
    num_frames = sum(len(chunk) for chunk in source.tracked("counting"))
    indices = clip_frames(rules, num_frames, source.fps, source.path.name)
    clip = pick_frames(source.tracked("reading"), indices)
    return lambda doing: iter(clip.split(source.chunk_frames))


def _row(scores: dict[str, float], columns: dict[str, str]) -> str:
    digits = {"psnr": 2, "seams": 2, "seams_original": 2}
    return "".join(f"{scores[name]:13.{digits.get(name, 4)}f}" for name in columns)


def _print_protocol(rules: Protocol, size: str, name: str) -> None:
    published = PROTOCOLS[name]
    changed = ["features"] * (rules.features != published.features)
    changed += ["size"] * (published.size is not None and size != f"{published.size[1]}x{published.size[0]}")
    note = f" (CHANGED: {', '.join(changed)})" if changed else ""
    say(f"protocol {rules}{note}")
    seams = f"; seams: {SEAMS}" if rules.clip == "all" else ""
    say(f"scores: {PROTOCOL}{seams}; mean of the videos' means")
