"""Do TIV tokens hold what stays, and TV tokens what changes? Measured on any checkpoint and any folder of clips.

What each number means: docs/factorisation.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.cards.baseline import best_resampling, dct_coefficients, still
from benchmarks.cards.divided_dct import DividedDct
from benchmarks.dumps import write_json
from benchmarks.studies.factorisation_report import draw, write_report
from benchmarks.studies.record import fingerprint
from tivtok.chunks.sharing import tiv_distance
from tivtok.editing import grey_tokens, swap, tiv_only
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoReader, find_videos, fit, frames_to_video

LENGTHS = (32, 64, 128, 256)  # frames over which chunks share a set
BUCKETS = ("still", "slow", "fast")
STILL_DB, FAST_DB = 30.0, 22.0  # a lossless still picture's PSNR, from which on a clip is still, below which it is fast

out = Console(highlight=False, markup=False)


class Clip(NamedTuple):
    name: str
    source: str
    video: Tensor  # (1, 3, F, H, W) in [-1, 1], a chunk at least


def factorisation(
    data: Annotated[Path, typer.Option(help="A folder of clips, one scene each; FOO__f0064.mp4 is of the source FOO.")],
    model: Annotated[str, typer.Option(help="A bundled checkpoint's name or a checkpoint folder.")] = "tiny",
    only: Annotated[list[str] | None, typer.Option(help="Name patterns of the clips; all by default.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers and pictures go.")] = Path("docs/results"),
    name: Annotated[str, typer.Option(help="Of the files with the results.")] = "factorisation",
    note: Annotated[str, typer.Option(help="Kept with the numbers: what the clips are.")] = "",
    with_pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="One per bucket.")] = True,
) -> None:
    """What TIV and TV tokens hold: clock, swap, reversal, each alone, and what sharing TIV sets costs.

    Example: python -m benchmarks.studies factorisation --data clips/ --model runs/mine/checkpoint
    """
    tokenizer = TivTok.from_pretrained(model)
    clips = load(data, tokenizer, only or ["*"])
    measured = measure(tokenizer, clips)
    settings = {
        "model": tokenizer.config.to_dict(),
        "model_id": tokenizer.model_id,
        "videos": fingerprint(data),
        "only": only,
        "data": note,
    }
    path = results / f"{name}.json.gz"
    write_json(path, {"settings": settings, "measured": measured, "summary": summarise(measured)})
    if with_pictures:
        draw(pictures(tokenizer, clips, measured), results, name)
    write_report(path)
    out.print(f"wrote {path}, .md{' and pictures' if with_pictures else ''}", soft_wrap=True)


def load(data: Path, model: TivTok, only: Sequence[str]) -> list[Clip]:
    """The first frames of each clip that has a chunk at least, centre crops at the model's size.

    Raises:
        ValueError: there are clips of fewer than two sources; what other clips do could not be told.
    """
    step, clips = model.config.chunk_frames, []
    for path in find_videos(data):
        if any(fnmatch(path.name, pattern) for pattern in only):
            chunks = islice(VideoReader(path, allow_truncated=True).chunks(step), max(LENGTHS) // step)
            frames = torch.cat([fit(chunk, *model.config.native_size) for chunk in chunks])
            if len(frames) >= step:
                source = re.sub(r"__f\d+$", "", path.stem)
                clips.append(Clip(path.name, source, frames_to_video(frames)[None]))
    if len({clip.source for clip in clips}) < 2:
        raise ValueError(f"data must hold clips of two sources and of {step} frames at least, got {data}: {len(clips)}")
    return clips


@torch.no_grad()
def measure(model: TivTok, clips: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """By the clip's name: its source, bucket and numbers; dB unless docs/factorisation.md says otherwise."""
    step, size = model.config.chunk_frames, model.config.native_size
    first = [clip.video[:, :, :step] for clip in clips]
    tokens = [model.encode(video) for video in first]
    grey = grey_tokens(model, *size)
    stills = [still(video) for video in first]
    buckets = [bucket(psnr(picture, video)) for picture, video in zip(stills, first, strict=True)]
    changes = _others_changes(tokens, [clip.source for clip in clips])
    measured: dict[str, dict[str, Any]] = {}
    for at, clip in enumerate(clips):
        mine, video, frozen = tokens[at], first[at], tokens[at].tv.mean(1, keepdim=True).expand_as(tokens[at].tv)
        alone = model.decode(tiv_only(mine, grey))
        values = {
            "still picture": psnr(stills[at], video),
            "full": psnr(model.decode(mine), video),
            "frozen TV": psnr(model.decode(replace(mine, tv=frozen)), video),
            "others' change of TV": psnr(model.decode(replace(mine, tv=frozen + changes[at])), video),
            "TIV alone, against the still picture": psnr(alone, stills[at]),
            "full, against the still picture": psnr(still(model.decode(mine)), stills[at]),
        }
        values |= _reversed(model, mine, video)
        other = _partner(at, clips, buckets)
        if other is not None:
            swapped = model.decode(swap(mine, tokens[other]))
            values["swap: motion with the TV clip"] = correlation(swapped, first[other])
            values["swap: motion with the TIV clip"] = correlation(swapped, video)
            values["own tokens: motion with the clip"] = correlation(model.decode(mine), video)
        measured[clip.name] = {"source": clip.source, "bucket": buckets[at]} | {
            k: round(v, 4) for k, v in values.items()
        }
    for frames in (step, *(length for length in LENGTHS if length > step)):
        for name, values in quality(model, clips, frames).items():
            measured[name][str(frames)] = values
    return measured


def bucket(still_db: float) -> str:
    return "still" if still_db >= STILL_DB else "fast" if still_db < FAST_DB else "slow"


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of the mean squared error over the whole video, after clamping; 100 at most."""
    mse = float((a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean())
    return float(10 * torch.log10(torch.tensor(4 / max(mse, 4e-10))))


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two videos' motions: of what differs from the still picture."""
    return float(F.cosine_similarity((a - still(a)).flatten(), (b - still(b)).flatten(), dim=0))


def _others_changes(tokens: Sequence[Tokens], sources: Sequence[str]) -> list[Tensor]:
    """For each clip, how TV tokens change over time in the clips of other sources, on average: means of sources."""
    changes = [t.tv - t.tv.mean(1, keepdim=True) for t in tokens]
    of_source = {
        s: torch.stack([c for c, its in zip(changes, sources, strict=True) if its == s]).mean(0) for s in sources
    }
    total = torch.stack(list(of_source.values())).sum(0)
    return [(total - of_source[s]) / (len(of_source) - 1) for s in sources]


def _partner(at: int, clips: Sequence[Clip], buckets: Sequence[str]) -> int | None:
    """The next clip of another source that moves as much, to swap tokens with."""
    order = [(at + k) % len(clips) for k in range(1, len(clips))]
    return next((k for k in order if clips[k].source != clips[at].source and buckets[k] == buckets[at]), None)


def _reversed(model: TivTok, tokens: Tokens, video: Tensor) -> dict[str, float]:
    """Of the clip backwards."""
    backwards = video.flip(2)
    its = model.encode(backwards)
    decoded = model.decode(replace(its, tiv=tokens.tiv))
    return {
        "reversal: TIV distance": tiv_distance(tokens.tiv, its.tiv),
        "reversal: dB lost with the forward TIV": psnr(model.decode(its), backwards) - psnr(decoded, backwards),
        "reversal: motion with the backward clip": correlation(decoded, backwards),
        "reversal: motion with the forward clip": correlation(decoded, video),
    }


def quality(model: TivTok, clips: Sequence[Clip], frames: int) -> dict[str, dict[str, float]]:
    """Measure so many frames of the clips that are long enough, in dB by the clips' names: decoded from one TIV set and
    from one per chunk, and from as many numbers, resampled and as DCT coefficients, divided or not."""
    config, chunks = model.config, frames // model.config.chunk_frames
    long = [clip for clip in clips if clip.video.shape[2] >= frames]
    if not long:
        return {}
    videos = torch.cat([clip.video[:, :, :frames] for clip in long])
    ways: dict[str, Callable[[Tensor], Tensor]] = {"still picture": still}
    for name, sets in {"one set": 1, "own sets": chunks}.items():
        ways[name] = lambda video, sets=sets: model.decode(model.encode(video, sets))
    rows = {name: torch.cat([way(video[None]) for video in videos]) for name, way in ways.items()}
    divided = DividedDct(config)
    for name, sets in {"one set": 1, "own sets": chunks}.items():
        numbers = min(config.num_tokens(frames, sets) * config.latent_dim, videos[0].numel())
        rows[f"resampling, numbers of {name}"] = best_resampling(videos, numbers)[1]
        rows[f"DCT, numbers of {name}"] = dct_coefficients(videos, numbers)
        rows[f"DCT, divided alike, {name}"] = divided(videos, sets)
    return {
        clip.name: {row: round(psnr(x[at], videos[at]), 4) for row, x in rows.items()} for at, clip in enumerate(long)
    }


def summarise(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`means_by_bucket`, and of them what TV tokens are worth and the share of it that is a clock."""
    summary = means_by_bucket(measured)
    for means in summary.values():
        worth = means["full"] - means["frozen TV"]
        clock = means["others' change of TV"] - means["frozen TV"]
        means["TV tokens' worth"] = round(worth, 4)
        means["clock"] = round(clock / worth, 4) if worth > 0.1 else None  # of nothing there is no share
    return summary


def means_by_bucket(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`means_over_sources` of every bucket that has clips, of "moving" (slow and fast) and of "all"."""
    means = {}
    for name, members in {"all": BUCKETS, "moving": BUCKETS[1:], **{b: (b,) for b in BUCKETS}}.items():
        of_bucket = [values for values in measured.values() if values["bucket"] in members]
        if of_bucket:
            means[name] = means_over_sources(of_bucket)
    return means


def means_over_sources(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of every number, also those by length; with the numbers of clips and of sources that had it."""
    sources: dict[str, list[dict[str, Any]]] = {}
    for clip in clips:
        sources.setdefault(clip.get("source", ""), []).append(clip)
    names = dict.fromkeys(name for clip in clips for name in clip if name not in ("source", "bucket"))
    means: dict[str, Any] = {"clips": len(clips), "sources": len(sources)}
    for name in names:
        if name.isdigit():
            have = [clip[name] | {"source": clip["source"]} for clip in clips if name in clip]
            means[name] = means_over_sources(have)
        else:
            of_sources = [[c[name] for c in those if name in c] for those in sources.values()]
            averages = [sum(values) / len(values) for values in of_sources if values]
            means[name] = round(sum(averages) / len(averages), 4)
    return means


@torch.no_grad()
def pictures(model: TivTok, clips: Sequence[Clip], measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """Rows to look at by bucket, (3, F, H, W) each, of the clip whose motion is the bucket's median."""
    step, shown = model.config.chunk_frames, {}
    buckets = [measured[clip.name]["bucket"] for clip in clips]
    grey = grey_tokens(model, *model.config.native_size)
    for name in BUCKETS:
        own = sorted(
            (at for at in range(len(clips)) if buckets[at] == name and _partner(at, clips, buckets) is not None),
            key=lambda at: measured[clips[at].name]["still picture"],
        )
        if own:
            at = own[len(own) // 2]
            other = _partner(at, clips, buckets)
            assert other is not None
            mine, others = (model.encode(clips[k].video[:, :, :step]) for k in (at, other))
            both, alone = model.decode(mine)[0], model.decode(tiv_only(mine, grey))[0]
            shown[name] = {
                "original": clips[at].video[0, :, :step],
                "reconstruction": both,
                "TIV only": alone,
                "TV adds": both - alone,
                "another clip": clips[other].video[0, :, :step],
                "TIV of the first, TV of the other": model.decode(swap(mine, others))[0],
            }
    return shown
