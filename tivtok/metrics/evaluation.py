"""Computing all metrics of many videos under one protocol, a piece of a video at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tivtok.metrics.frames import frame_changes, psnr, seams, ssim
from tivtok.metrics.fvd import FeatureStatistics, fvd
from tivtok.metrics.lpips import LPIPS
from tivtok.metrics.protocols import Protocol
from tivtok.video import frames_to_video

# (original, reconstruction), uint8 (f, H, W, 3) each.
Pair = tuple[Tensor, Tensor]


class Measured(NamedTuple):
    """What is known of a video.

    Attributes:
        scores: means over its frames by metric (NaN where there is none).
        features: (clips, 2, D) of original and reconstruction, for rFVD.
    """

    scores: dict[str, float]
    features: Tensor


@dataclass
class Evaluation:
    """Collects the scores of videos.

    Attributes:
        protocol: what the numbers mean.
        lpips: networks by the name their score gets.
        features: for rFVD, by `load_i3d`; None without.
        videos: the scores of each video so far.
    """

    protocol: Protocol
    lpips: dict[str, LPIPS]
    features: Callable[[Tensor], Tensor] | None
    videos: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._originals, self._reconstructions = FeatureStatistics(), FeatureStatistics()

    def add(self, pairs: Iterable[Pair], chunk_frames: int | Sequence[int]) -> dict[str, float]:
        """Score the next video, as `score` does; its scores."""
        measured = self.score(pairs, chunk_frames)
        self.take(measured)
        return measured.scores

    def take(self, measured: Measured) -> None:
        """Count a video that has been scored, here or by another process."""
        self.videos.append(measured.scores)
        for clip in measured.features:
            for features, statistics in zip(clip, (self._originals, self._reconstructions), strict=True):
                statistics.add(features[None])

    @torch.no_grad()
    def score(self, pairs: Iterable[Pair], chunk_frames: int | Sequence[int]) -> Measured:
        """Score a video without counting it.

        Args:
            pairs: of all its frames, in order.
            chunk_frames: the frames that the model encoded together, whose borders may show, as in `seams`.
        """
        features: list[Tensor] = []
        # As numbers: small tensors kept between large ones that are freed would fill glibc's heap with holes.
        frame_scores: dict[str, list[float]] = {name: [] for name in ("psnr", "ssim", *self.lpips)}
        changes: dict[str, list[float]] = {"seams": [], "seams_original": []}
        before: Tensor | None = None  # the last frames of the chunk before, so that the change between chunks is seen
        for original, reconstruction in self._through_features(pairs, features):
            frame_scores["psnr"] += psnr(reconstruction, original).tolist()
            frame_scores["ssim"] += ssim(reconstruction, original).tolist()
            for name, network in self.lpips.items():
                device = network.mean.device
                a, b = (frames_to_video(x.to(device)).transpose(0, 1) for x in (reconstruction, original))
                frame_scores[name] += network(a, b).tolist()
            both = torch.stack([reconstruction, original])
            joined = both if before is None else torch.cat([before, both], dim=1)
            for seen, frames in zip(changes.values(), joined, strict=True):
                seen += frame_changes(frames).tolist()
            before = both[:, -1:]
        scores = {name: float(torch.tensor(values).mean()) for name, values in frame_scores.items()}
        if self.protocol.psnr == "clip":
            errors = 10 ** (-torch.tensor(frame_scores["psnr"]) / 10)
            scores["psnr"] = float(-10 * errors.mean().log10())
        for name, seen in changes.items():
            border, inside = seams(torch.tensor(seen), chunk_frames)
            scores[name] = border / inside if inside else float("nan")
        return Measured(scores, torch.stack(features) if features else torch.empty(0, 2, 0))

    def means(self) -> dict[str, float]:
        """Average the videos' scores that are not NaN; with features of clips, add "rfvd".

        Raises:
            ValueError: rFVD of fewer than two clips.
        """
        means = {name: _mean([video[name] for video in self.videos]) for name in self.videos[0]}
        if self.features is not None or self.clips:
            means["rfvd"] = fvd(self._originals, self._reconstructions, self.protocol.covariance)
        return means

    @property
    def clips(self) -> int:
        """How many clips rFVD has so far."""
        return self._originals.count

    def _through_features(self, pairs: Iterable[Pair], features: list[Tensor]) -> Iterator[Pair]:
        """Pass the pairs on, and add every whole clip of ``protocol.frames``, (2, D), to ``features``.

        Where clips are whole videos (``protocol.clip`` "start"), a shorter one counts as well.
        """
        length = self.protocol.frames
        waiting: list[Tensor] = []  # (2, f, H, W, 3)
        for pair in pairs:
            yield pair
            if self.features is None:
                continue
            waiting.append(torch.stack(pair))
            frames = torch.cat(waiting, dim=1)
            whole = frames.shape[1] // length * length
            features += [self._features(clip) for clip in (frames[:, :whole].split(length, dim=1) if whole else ())]
            waiting = [frames[:, whole:]]
        rest = torch.cat(waiting, dim=1) if waiting else torch.empty(2, 0)
        if self.protocol.clip == "start" and rest.shape[1]:
            features.append(self._features(rest))

    def _features(self, clip: Tensor) -> Tensor:
        """(2, D) of (2, f, H, W, 3)."""
        assert self.features is not None
        return torch.cat([self.features(frames_to_video(frames)[None]) for frames in clip]).cpu()


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values).nanmean())
