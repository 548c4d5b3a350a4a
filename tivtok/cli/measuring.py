"""Measuring the videos of ``tivtok eval``: one at a time, by any number of processes, kept as they come."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tivtok.chunks.sharing import TivSets
from tivtok.cli.output import CommandError, StepsBar
from tivtok.cli.source import Source, compare
from tivtok.loading import load_model
from tivtok.metrics.evaluation import Evaluation, Measured
from tivtok.metrics.i3d import load_i3d
from tivtok.metrics.lpips import LPIPS, Net
from tivtok.metrics.protocols import Protocol, clip_frames, pick_frames
from tivtok.metrics.weights import find_weights
from tivtok.streaming import encode_stream
from tivtok.tokenizer import TivTok
from tivtok.video import VideoError
from tivtok.video.sources import VideoRef

# What is being done, for a progress bar -> chunks of a video.
Read = Callable[[str], Iterator[Tensor]]

KEPT_FORMAT = {"format": "tivtok.eval", "version": 1}


class Video(NamedTuple):
    """What came of a video.

    Attributes:
        name: its path, and which part of it.
        measured: None where it could not be read.
        frames, tokens: of what was measured.
        damage: a line on what its decoder has made up for.
        error: why it could not be read.
    """

    name: str
    measured: Measured | None
    frames: int = 0
    tokens: int = 0
    damage: str = ""
    error: str = ""


@dataclass
class Measurer:
    """Encodes, decodes and scores a video; loads model and metrics when it is first used, in each process anew.

    Attributes:
        model, device, precision, compile: as `load_model` takes them.
        protocol: what is measured.
        metrics: names of them.
        weights: folder of theirs.
        size, tiv_sets, refine, strict: as the commands have them.
        bars: show progress within a video.
    """

    model: str
    device: str
    precision: str
    compile: bool
    protocol: Protocol
    metrics: frozenset[str]
    weights: Path | None
    size: str
    tiv_sets: TivSets
    refine: int
    strict: bool
    bars: bool
    loaded: tuple[TivTok, Evaluation] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"loaded": None}

    def load(self) -> tuple[TivTok, Evaluation]:
        """The model, and an evaluation with the networks that the metrics need.

        Raises:
            CheckpointError, ValueError: the model, the device or weights of a metric are not there.
        """
        if self.loaded is None:
            tokenizer = load_model(self.model, self.device, self.precision, self.compile)
            self.loaded = tokenizer, self._evaluation(next(tokenizer.parameters()).device)
        return self.loaded

    def __call__(self, ref: VideoRef) -> Video:
        tokenizer, evaluation = self.load()
        try:
            source = Source(ref, self.size, tokenizer, strict=self.strict)
            read = source.tracked if self.bars else lambda doing: source.chunks()
            chunks = read if self.protocol.clip == "all" else _clip(read, source, self.protocol, ref.name)
            with StepsBar("refining") as bar:
                on_step = bar.show if self.bars else lambda done, total: None
                encoded = encode_stream(tokenizer, chunks("encoding"), self.tiv_sets, source.fps, self.refine, on_step)
        except VideoError as error:
            return Video(name_of(ref), None, error=str(error))
        pairs = compare(tokenizer, encoded, chunks("decoding"))
        measured = evaluation.score(pairs, encoded.chunk_frames or tokenizer.config.chunk_frames)
        return Video(name_of(ref), measured, encoded.num_frames, encoded.num_tokens, source.damage())

    def _evaluation(self, device: torch.device) -> Evaluation:
        nets: dict[str, Net] = {"lpips-vgg": "vgg", "lpips-alex": "alex"}
        lpips = {
            name: LPIPS(net, weights=find_weights(name, self.weights)).to(device)
            for name, net in nets.items()
            if name in self.metrics
        }
        i3d = None
        if "rfvd" in self.metrics:
            kind = "i3d" if self.protocol.features == "logits" else "i3d-torchscript"
            i3d = load_i3d(find_weights(kind, self.weights), device)
        return Evaluation(self.protocol, lpips, i3d)


def name_of(ref: VideoRef) -> str:
    """The path of a video, or of its tar with its name in it, and the part of it that a list wants."""
    if not ref.start and ref.end is None:
        return ref.place
    return f"{ref.place} from {ref.start:g} s" + ("" if ref.end is None else f" to {ref.end:g} s")


class Kept:
    """What was measured so far, in a file that grows by a line for each video, so that a stopped run goes on.

    Args:
        path: the file, None for none.
        settings: what the numbers depend on.

    Raises:
        CommandError: it was measured with other settings, or is no such file.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.videos: dict[str, Video] = {}
        self._path = path
        if path is None:
            return
        head = json.dumps(KEPT_FORMAT | {"settings": settings}, sort_keys=True)
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
        whole = lines[:-1]  # a line without its end was being written when the run stopped
        if whole and whole[0] != head:
            raise CommandError(f"{path} is of another evaluation: name another file, or remove it")
        for line in whole[1:]:
            video = _from_line(line, path)
            self.videos[video.name] = video
        if not whole or lines[-1]:
            path.write_text("".join(line + "\n" for line in whole or [head]), encoding="utf-8")

    def add(self, video: Video) -> None:
        self.videos[video.name] = video
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_to_line(video) + "\n")


def _to_line(video: Video) -> str:
    stated = video._asdict()
    if video.measured is not None:
        scores, features = video.measured
        data = base64.b64encode(features.float().numpy().astype("<f4").tobytes()).decode()
        stated["measured"] = {"scores": scores, "features": data, "shape": list(features.shape)}
    return json.dumps(stated)


def _from_line(line: str, path: Path) -> Video:
    try:
        stated = json.loads(line)
        if (measured := stated.pop("measured")) is not None:
            data = bytearray(base64.b64decode(measured["features"]))
            features = torch.frombuffer(data, dtype=torch.float32) if data else torch.empty(0)
            measured = Measured(measured["scores"], features.view(measured["shape"]))
        return Video(measured=measured, **stated)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CommandError(f"{path} is damaged: {error}") from None


def _clip(read: Read, source: Source, rules: Protocol, name: str) -> Read:
    """The frames of a video's clip, in chunks as ``read`` gives those of the video.

    The video is read twice: files' own counts of their frames can be wrong.
    """
    num_frames = sum(len(chunk) for chunk in read("counting"))
    indices = clip_frames(rules, num_frames, source.fps, name)
    clip = pick_frames(read("reading"), indices)
    return lambda doing: iter(clip.split(source.chunk_frames))
