"""What TIV sets cost and bring: fixed numbers of sets against "auto", on videos with many scenes and with one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.dumps import beside, read_json, write_json
from benchmarks.studies.record import fingerprint
from tivtok.chunks.cuts import CUT_LEVELS, CUT_RATIO, end_at_cuts
from tivtok.chunks.sharing import (
    AUTO_DISTANCE,
    AUTO_DISTANCE_IN_DEBT,
    Sharing,
    merge_tiv,
    share_tiv_sets,
    tiv_distance,
)
from tivtok.files import replacing
from tivtok.metrics import PROTOCOL, frame_changes, psnr
from tivtok.tokenizer import TivTok
from tivtok.video import VideoReader, find_videos, fit, frames_to_video, video_to_frames

DISTANCES = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.25)
SCENES = 7  # of a multi-scene video
SCENE_FRAMES = (16, 64)  # drawn evenly between these, so that cuts fall anywhere in a chunk
MULTI_SCENE, SINGLE_SCENE = 6, 24  # videos
CHUNKS = 4  # of a single-scene video
# Fixed numbers of sets, and one distance for the whole video, on chunks of even length or ending at cuts.
LABELS = {
    "fixed": "fixed N",
    "even chunks": "by distance, even chunks",
    "cuts": "by distance, chunks end at cuts",
}
COLUMNS = ["sets", "tokens", "psnr_db", "change_at_chunk_borders", "change_inside_chunks", "change_at_group_borders"]

out = Console(highlight=False, markup=False)


class Video(NamedTuple):
    kind: str  # "multi-scene" or "single-scene"
    name: str
    frames: Tensor  # uint8 (F, H, W, 3)
    cuts: list[int]  # frames that begin a scene, but for the first


def tiv_sets(
    data: Annotated[Path, typer.Option(help="A folder of clips, one scene each, of 64 frames or more.")],
    model: Annotated[str, typer.Option(help="A bundled checkpoint's name or a checkpoint folder.")] = "tiny",
    results: Annotated[Path, typer.Option(help="Where the numbers and the picture go.")] = Path("docs/results"),
    name: Annotated[str, typer.Option(help="Of the files with the results.")] = "long-video-tiv-sets",
    seed: Annotated[int, typer.Option(help="Of the draw of scenes and clips.")] = 0,
    note: Annotated[str, typer.Option(help="Kept with the numbers: what the clips are.")] = "",
) -> None:
    """PSNR against tokens, seams, and which signal tells best that sharing will hurt. Goes on where it was stopped."""
    torch.set_grad_enabled(False)
    tokenizer = TivTok.from_pretrained(model)
    path = results / f"{name}.json.gz"
    settings = {
        "model": f"{tokenizer.config.name}, id {tokenizer.model_id}",
        "data": note,
        "clips": fingerprint(data),
        "seed": seed,
        "size": list(tokenizer.config.native_size),
        "distances": DISTANCES,
        "auto": [CUT_LEVELS, CUT_RATIO, AUTO_DISTANCE, AUTO_DISTANCE_IN_DEBT],
        "protocol": PROTOCOL,
    }
    record = _load(path, settings)
    for video in videos(data, tokenizer, seed):
        if video.name not in record["videos"]:
            record["videos"][video.name] = {"kind": video.kind} | measure(tokenizer, video)
            out.print(f"measured {video.name}")
            write_json(path, record)
    record["summary"] = summarise(record["videos"])
    write_json(path, record)
    plot(record, beside(path, ".png"))
    with replacing(beside(path, ".md")) as temporary:
        temporary.write_text(report(record))
    out.print(f"wrote {path}, .md and .png", soft_wrap=True)


def videos(data: Path, model: TivTok, seed: int) -> Iterator[Video]:
    """The same ones for a seed: scenes in random order cut to random lengths, and clips by themselves."""
    rng = random.Random(seed)
    files = find_videos(data)
    rng.shuffle(files)
    at = iter(files)
    size = model.config.native_size
    for index in range(MULTI_SCENE):
        scenes = [_frames(next(at), rng.randint(*SCENE_FRAMES), size) for _ in range(SCENES)]
        starts = torch.tensor([len(s) for s in scenes]).cumsum(0)[:-1].tolist()
        yield Video("multi-scene", f"multi-{index}", torch.cat(scenes), starts)
    clips = (_frames(path, CHUNKS * model.config.chunk_frames, size) for path in at)
    long_enough = (frames for frames in clips if len(frames) > model.config.chunk_frames)
    for index, frames in enumerate(islice(long_enough, SINGLE_SCENE)):
        yield Video("single-scene", f"single-{index}", frames, [])


def measure(model: TivTok, video: Video) -> dict[str, Any]:
    """Every strategy on the same chunk tokens; the numbers of `COLUMNS` for each."""
    whole = frames_to_video(video.frames)[None]
    tiv, tv = model.encode_chunks(whole)
    chunks = tiv.shape[1]
    even = [len(part) for part in video.frames.split(model.config.chunk_frames)]
    fixed = {n: share_tiv_sets(chunks, n) for n in sorted({1, 2, 4, SCENES, 11, 16, chunks}) if n <= chunks}
    result = {
        "frames": len(video.frames),
        "original": _seams(model, video, video.frames, even),
        "fixed": {str(n): _score(model, video, tiv, tv, sets, even) for n, sets in fixed.items()},
        "signals": _signals(model, video, tiv, tv),
    }
    chunk_frames = model.config.chunk_frames
    cut = end_at_cuts(whole.split(chunk_frames, dim=2), chunk_frames, model.config.frames_per_group)
    at_cuts = [chunk.shape[2] for chunk in cut]
    cut_tiv, cut_tv = model.encode_chunks(whole, at_cuts)
    for family, own_tiv, own_tv, lengths in (("even chunks", tiv, tv, even), ("cuts", cut_tiv, cut_tv, at_cuts)):
        sets = {d: _shared(own_tiv, Sharing("auto", (d, d)), [1.0] * own_tiv.shape[1]) for d in DISTANCES}
        result[family] = {str(d): _score(model, video, own_tiv, own_tv, s, lengths) for d, s in sets.items()}
    chosen = _shared(cut_tiv, Sharing("auto"), [length / chunk_frames for length in at_cuts])
    return result | {"auto": _score(model, video, cut_tiv, cut_tv, chosen, at_cuts)}


def _shared(tiv: Tensor, sharing: Sharing, lengths: list[float]) -> Tensor:
    """The TIV set of each chunk, from TIV tokens (B, K, N_TIV, D) and the chunks' lengths over that of a whole one."""
    for chunk, length in zip(tiv.unbind(dim=1), lengths, strict=True):
        sharing.add(chunk, length)
    return sharing.set_of_chunk()


def _score(
    model: TivTok, video: Video, tiv: Tensor, tv: Tensor, set_of_chunk: Tensor, lengths: list[int]
) -> list[float]:
    merged = merge_tiv(tiv, set_of_chunk)
    frames = _decode(model, merged, tv, set_of_chunk, lengths, video.frames)
    sets = merged.shape[1]
    tokens = sets * model.config.num_tiv + tv.shape[1] * model.config.num_tv
    quality = psnr(frames, video.frames).clamp(max=100).mean()
    return [sets, tokens, round(float(quality), 4), *_seams(model, video, frames, lengths)]


def _seams(model: TivTok, video: Video, frames: Tensor, lengths: list[int]) -> list[float]:
    """The last three of `COLUMNS`, without the changes at cuts, which are no seams."""
    changes = frame_changes(frames)
    at = torch.arange(1, len(frames))
    border = torch.isin(at, torch.tensor(lengths).cumsum(0))
    counts = ~torch.isin(at, torch.tensor(video.cuts))
    groups = at % model.config.frames_per_group == 0
    return [round(float(changes[where & counts].mean()), 4) for where in (border, ~border, groups)]


def _decode(model: TivTok, tiv: Tensor, tv: Tensor, set_of_chunk: Tensor, lengths: list[int], like: Tensor) -> Tensor:
    groups = torch.tensor([model.config.num_groups(length) for length in lengths])
    groups_of_set = set_of_chunk.repeat_interleave(groups).bincount().tolist()
    video = model.decode_groups(model.prepare(tiv), tv, groups_of_set, *like.shape[1:3])
    return video_to_frames(video[0, :, : len(like)])


def _signals(model: TivTok, video: Video, tiv: Tensor, tv: Tensor) -> list[list[float]]:
    """Of each two neighbouring chunks: [dB lost by sharing a set, TIV distance, histogram change, pixel change]."""
    step, groups = model.config.chunk_frames, model.config.groups_per_chunk
    rows = []
    for k in range(tiv.shape[1] - 1):
        frames = video.frames[k * step : (k + 2) * step]
        pair, pair_tv = tiv[:, k : k + 2], tv[:, k * groups : (k + 2) * groups]
        lengths = [step, len(frames) - step]
        alone, shared = (
            psnr(_decode(model, merge_tiv(pair, sets), pair_tv, sets, lengths, frames), frames).mean()
            for sets in (torch.tensor([0, 1]), torch.tensor([0, 0]))
        )
        distance = tiv_distance(pair[:, 0], pair[:, 1])
        signals = (distance, _histogram_change(frames).max(), frame_changes(frames).max())
        rows.append([round(float(x), 5) for x in (alone - shared, *signals)])
    return rows


def _histogram_change(frames: Tensor) -> Tensor:
    """(F - 1,): half the L1 distance of the colour histograms (16 bins a channel) of neighbouring frames."""
    bins = (frames.long() // 16 + torch.arange(3) * 16).flatten(1)
    counts = torch.zeros(len(frames), 48).scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float32))
    return (counts[1:] - counts[:-1]).abs().sum(1) / bins.shape[1] / 2


def summarise(measured: dict[str, Any]) -> dict[str, Any]:
    """Means over the videos of a kind, and the rank correlation of each signal with what sharing costs."""
    summary: dict[str, Any] = {}
    for kind in ("multi-scene", "single-scene"):
        of_kind = [v for v in measured.values() if v["kind"] == kind]
        means: dict[str, Any] = {"original": _mean([v["original"] for v in of_kind])}
        for family in LABELS:
            common = set.intersection(*(set(v[family]) for v in of_kind))
            means[family] = {key: _mean([v[family][key] for v in of_kind]) for key in sorted(common, key=float)}
        means["auto"] = _mean([v["auto"] for v in of_kind])
        means["one set per chunk"] = _mean([v["fixed"][max(v["fixed"], key=int)] for v in of_kind])
        summary[kind] = means
    pairs = torch.tensor([row for v in measured.values() for row in v["signals"]])
    ranks = pairs.argsort(0).argsort(0).float()
    correlations = torch.corrcoef(ranks.T)[0, 1:].tolist()
    names = ("TIV distance", "histogram change", "pixel change")
    summary["rank correlation with dB lost"] = {n: round(c, 3) for n, c in zip(names, correlations, strict=True)}
    summary["pairs of chunks"] = len(pairs)
    return summary


def _fixed_at(tokens: float, means: dict[str, Any]) -> float:
    """PSNR of fixed numbers of sets at so many tokens, interpolated."""
    curve = sorted((row[1], row[2]) for row in [*means["fixed"].values(), means["one set per chunk"]])
    return float(np.interp(tokens, [point[0] for point in curve], [point[1] for point in curve]))


def _mean(rows: list[list[float]]) -> list[float]:
    return [round(sum(column) / len(rows), 3) for column in zip(*rows, strict=True)]


def report(record: dict[str, Any]) -> str:
    """The summary as Markdown."""
    settings, summary = record["settings"], record["summary"]
    height, width = settings["size"]
    lines = [
        "# TIV sets: quality against tokens",
        "",
        f"Model {settings['model']}, {width}x{height}. {settings['data']}",
        "",
        "Written by `python -m benchmarks.studies tiv-sets`.",
    ]
    lines += ["", "## `auto` against fixed numbers", ""]
    for kind in ("multi-scene", "single-scene"):
        auto, best = summary[kind]["auto"], summary[kind]["one set per chunk"]
        lines.append(
            f"- {kind}: {auto[2] - best[2]:+.3f} dB and {auto[1] / best[1] - 1:+.1%} tokens against one set per chunk, "
            f"the best fixed number; {auto[2] - _fixed_at(auto[1], summary[kind]):+.3f} dB against fixed numbers at "
            "as many tokens (between two of them, the line that joins them)"
        )
    for kind in ("multi-scene", "single-scene"):
        means = summary[kind]
        count = sum(video["kind"] == kind for video in record["videos"].values())
        rows = [("original", [None, None, None, *means["original"]])]
        rows += [(f"fixed, N = {key}", row) for key, row in means["fixed"].items()]
        rows += [("fixed, one per chunk", means["one set per chunk"])]
        rows += [("`auto`", means["auto"])]
        rows += [(f"by distance {key}, even chunks", row) for key, row in means["even chunks"].items()]
        rows += [(f"by distance {key}, chunks end at cuts", row) for key, row in means["cuts"].items()]
        lines += [
            "",
            f"## {kind.capitalize()} videos (means of {count})",
            "",
            "| TIV sets | sets | tokens | PSNR dB | change at chunk borders | inside | ratio | at group borders |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, (sets, tokens, quality, border, inside, group) in rows:
            counts = "| | |" if sets is None else f"{sets:.1f} | {tokens:.1f} | {quality:.2f} |"
            lines.append(f"| {name} | {counts} {border:.2f} | {inside:.2f} | {border / inside:.2f} | {group:.2f} |")
    lines += [
        "",
        "## Which signal tells that sharing will hurt",
        "",
        f"Rank correlation with the dB lost when neighbouring chunks share a set ({summary['pairs of chunks']} pairs):",
        "",
        *(f"- {name}: {value:.2f}" for name, value in summary["rank correlation with dB lost"].items()),
    ]
    return "\n".join(lines) + "\n"


def plot(record: dict[str, Any], path: Path) -> None:
    """PSNR against tokens for both kinds of video."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, kind in zip(axes, ("multi-scene", "single-scene"), strict=True):
        means = record["summary"][kind]
        for family, style in zip(LABELS, ("o-", "v:", "s-"), strict=True):
            _, tokens, quality, *_ = zip(*means[family].values(), strict=True)
            axis.plot(tokens, quality, style, label=LABELS[family])
            if family == "even chunks":
                continue  # its distances are those of "cuts"
            for key, (_, x, y, *_) in means[family].items():
                place = (0, -12 if family == "fixed" else 6)
                axis.annotate(key, (x, y), place, textcoords="offset points", fontsize=7)
        _, tokens, quality, *_ = means["auto"]
        axis.plot(tokens, quality, "k*", markersize=14, label="auto")
        _, tokens, quality, *_ = means["one set per chunk"]
        axis.plot(tokens, quality, "rx", markersize=9, label="one set per chunk")
        axis.set(title=kind, xlabel="tokens per video (mean)", ylabel="PSNR in dB (mean)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(f"TIV sets: quality against tokens, model {record['settings']['model']}", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _frames(path: Path, count: int, size: tuple[int, int]) -> Tensor:
    return torch.cat([fit(chunk, *size) for chunk in VideoReader(path, allow_truncated=True).chunks(64)])[:count]


def _load(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What was measured with the same settings, or nothing yet."""
    if path.exists():
        record = read_json(path)
        if record["settings"] == json.loads(json.dumps(settings)):
            return record
    return {"settings": settings, "columns": COLUMNS, "videos": {}}
