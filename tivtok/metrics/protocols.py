"""Evaluation protocols: which clip of each video, at which size, with which features. Scores of different protocols do
not compare; rFVD least of all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tivtok.metrics.fvd import Covariance

Features = Literal["logits", "torchscript"]


@dataclass(frozen=True)
class Protocol:
    """Rules by which reconstructions are scored.

    Frames are 8-bit RGB, cut to shape about the centre and resized bicubically, antialiased. A video shorter than the
    clip gives its last frame again.

    Attributes:
        split: the videos that published numbers are of.
        clip: "all": every frame, and rFVD of the clips one after another; "start": as many frames from the start as
            there are, up to ``frames``, and rFVD of all of them as one clip; else one clip of each video: its "first",
            its "centre" one, or a "random" one that depends on the video's name alone.
        frames: of a clip.
        fps: frames are picked at this rate, None: each frame.
        size: (height, width), "source": the video's, None: what is asked for, or the model's.
        features: of rFVD. "logits": `tivtok.metrics.i3d` with the weights of `tivtok weights i3d`; "torchscript": the
            program i3d_torchscript.pt.
        covariance: what rFVD's covariances are divided by.
        psnr: "frame": mean of the frames' PSNR; "clip": of the mean squared error of all frames.
        source: where the protocol is from.
    """

    name: str
    split: str
    clip: Literal["all", "start", "first", "centre", "random"]
    frames: int
    fps: float | None
    size: tuple[int, int] | Literal["source"] | None
    features: Features
    covariance: Covariance
    psnr: Literal["frame", "clip"]
    source: str

    def __str__(self) -> str:
        rate = "" if self.fps is None else f" at {self.fps:g} fps"
        what = f"{self.frames} frames{rate}"
        clips = {"all": f"clip after clip of {what}", "start": f"first {what} or fewer"}
        clip = clips.get(self.clip, f"{self.clip} {what}")
        size = "" if self.size is None else f", {self.size_text}"
        return (
            f"{self.name}: {self.split}; {clip}{size}; PSNR of each {self.psnr}; "
            f"rFVD of I3D {self.features}, covariance / ({self.covariance}); {self.source}"
        )

    @property
    def size_text(self) -> str:
        """``size`` as the commands take it."""
        if self.size is None or self.size == "source":
            return self.size or "native"
        return f"{self.size[1]}x{self.size[0]}"


_UCF_TRAIN = "UCF-101, the 9,537 videos of train list 1"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("whole", "any videos", "all", 16, None, None, "logits", "N-1", "frame", "this package's own"),
        Protocol(
            *("larp", _UCF_TRAIN, "random", 16, None, (128, 128), "torchscript", "N", "clip"),
            "LARP, arXiv 2410.21264, and its evaluation code",
        ),
        Protocol(
            *("adaptok", _UCF_TRAIN, "first", 16, None, (128, 128), "torchscript", "N", "clip"),
            "AdapTok, arXiv 2505.17011",
        ),
        Protocol(
            *("omnitokenizer", "UCF-101, validation list", "centre", 17, 16.0, (256, 256), "logits", "N-1", "frame"),
            "OmniTokenizer, arXiv 2406.09399, and its evaluation code (PSNR: ours)",
        ),
        Protocol(
            *("paper", _UCF_TRAIN, "first", 16, None, (256, 256), "torchscript", "N", "frame"),
            "TivTok, arXiv 2606.17590, says 16 frames of 256x256 of UCF-101; the rest is our reading",
        ),
        Protocol(
            *("vidtok", "MCL-JCV, its 30 videos", "all", 16, None, (256, 256), "torchscript", "N", "frame"),
            "VidTok, arXiv 2412.13061, and its code, of models that are not causal (rFVD and the mean of PSNR: ours)",
        ),
        Protocol(
            *("tokenbench", "TokenBench", "start", 300, None, "source", "torchscript", "N-1", "clip"),
            "Cosmos, arXiv 2501.03575, and the code of TokenBench",
        ),
    )
}


def clip_frames(protocol: Protocol, num_frames: int, fps: float | None, name: str) -> list[int]:
    """The frames of the clip, ascending; the last one again and again where the video is too short.

    Args:
        num_frames, fps, name: of the video.

    Raises:
        ValueError: ``fps`` is None and the protocol picks frames by time.
    """
    if protocol.fps is not None and fps is None:
        raise ValueError(f"protocol {protocol.name} picks frames at {protocol.fps:g} fps, and {name} states no rate")
    if protocol.clip == "start":
        return list(range(min(num_frames, protocol.frames)))
    step = 1.0 if protocol.fps is None or fps is None else fps / protocol.fps
    offsets = [int(step * i) for i in range(protocol.frames)]
    room = max(0, num_frames - 1 - offsets[-1])
    start = {"first": 0, "centre": room // 2, "random": random.Random(name).randint(0, room)}[protocol.clip]
    return [min(start + offset, num_frames - 1) for offset in offsets]


def pick_frames(chunks: Iterable[Tensor], indices: list[int]) -> Tensor:
    """The frames ``indices`` (ascending, repeats allowed) of a video that comes in chunks of uint8 (f, H, W, 3)."""
    picked: list[Tensor] = []
    start = 0
    for chunk in chunks:
        picked += [chunk[i - start] for i in indices[len(picked) :] if i < start + len(chunk)]
        start += len(chunk)
        if len(picked) == len(indices):
            break
    return torch.stack(picked)
