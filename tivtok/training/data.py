"""Clips to train on and to measure on.

Clip number i of a run depends on the seed and i alone, and step s takes the clips from s * batch_size on. So any number
of processes and workers sees the same batches, and the position in the data is the step. (Steps of longer clips take
fewer; the numbers up to the next step's are left out.)
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import count, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tivtok.training.camera import film
from tivtok.training.collage import MAX_PIECES, lay_over
from tivtok.training.config import TrainConfig
from tivtok.training.randomness import Purpose, generator
from tivtok.video import VideoError, fit, frames_to_video, resize
from tivtok.video.clips import frame_indices, read_clip, read_levels
from tivtok.video.sources import VideoRef

log = logging.getLogger(__name__)

# This many unreadable videos in a row are no accident.
MAX_UNREADABLE = 20

# Probability that "strong" augmentation mixes another clip into one: twice the content to tell apart.
BLENDED = 0.5


class Videos(Protocol):
    """Where clips come from."""

    def __len__(self) -> int: ...

    def clip(self, video: int, short_side: int, count: int, stride: int, position: float) -> Tensor:
        """Read as `read_clip` does, and resize to a short side of ``short_side`` pixels."""
        ...


class VideosOnDisk:
    """Decodes what is asked for, when it is asked for."""

    def __init__(
        self, refs: list[VideoRef], min_size: tuple[int, int], strict: bool = False, fps: float | None = None
    ) -> None:
        self.refs = refs
        self.min_size = min_size
        self.fps = fps
        self.strict = strict

    def __len__(self) -> int:
        return len(self.refs)

    def clip(self, video: int, short_side: int, count: int, stride: int, position: float) -> Tensor:
        resized = partial(_resize, short_side=short_side, min_size=self.min_size)
        return read_clip(self.refs[video], count, stride, position, resized, fps=self.fps, strict=self.strict)


class VideosInMemory:
    """Every video decoded once and kept at each short side; of full-size frames no more than one is held."""

    def __init__(
        self,
        refs: Iterable[VideoRef],
        short_sides: tuple[int, ...],
        min_size: tuple[int, int],
        strict: bool = False,
        fps: float | None = None,
    ) -> None:
        changes = [partial(_resize, short_side=side, min_size=min_size) for side in short_sides]
        self.levels = [
            dict(zip(short_sides, read_levels(ref, changes, fps=fps, strict=strict), strict=True)) for ref in refs
        ]

    def __len__(self) -> int:
        return len(self.levels)

    def clip(self, video: int, short_side: int, count: int, stride: int, position: float) -> Tensor:
        frames = self.levels[video][short_side]
        return frames[frame_indices(len(frames), count, stride, position)]


class Mixture:
    """Data sets of which each has its share of the clips.

    Args:
        refs: all videos; a list's column ``dataset`` says which they are of.
        shares: by data set.

    Raises:
        ValueError: there is a data set without a share, or a share of none.
    """

    def __init__(self, refs: Sequence[VideoRef], shares: Sequence[tuple[str, float]]) -> None:
        videos: dict[str, list[int]] = {}
        for number, ref in enumerate(refs):
            videos.setdefault(str(ref.columns.get("dataset", "")), []).append(number)
        if videos.keys() != {name for name, _ in shares}:
            raise ValueError(
                f"mix must have a share for each data set, {', '.join(map(repr, sorted(videos)))} by the lists' column "
                f"dataset, got {', '.join(repr(name) for name, _ in shares)}"
            )
        total = sum(share for _, share in shares)
        self._videos = [videos[name] for name, _ in shares]
        self._shares = [share / total for _, share in shares]

    def draw(self, rng: np.random.Generator) -> Iterator[int]:
        """Numbers of videos, without end."""
        while True:
            of_one = self._videos[rng.choice(len(self._videos), p=self._shares)]
            yield of_one[rng.integers(len(of_one))]


class TrainingClips(Dataset[Tensor]):
    """Clip number i, (3, F, *native_size) in [-1, 1], for any i: each epoch has every video once.

    With a mixture the videos are drawn from it instead. F is that of `chunks_of_step`, or for all clips of a step some
    frame groups less if `short_clips` wants it.

    A video that cannot be read is reported in the log, and the next one takes its place.
    """

    def __init__(self, videos: Videos, config: TrainConfig, mixture: Mixture | None = None) -> None:
        self.videos = videos
        self.config = config
        self.mixture = mixture

    def __getitem__(self, number: int) -> Tensor:
        """
        Raises:
            VideoError: `MAX_UNREADABLE` videos in a row cannot be read.
        """
        chosen = self._choices(number)
        rng = generator(self.config.seed, Purpose.CLIP, number)
        step = number // self.config.batch_size
        frames = chunks_of_step(self.config, step) * self.config.model.chunk_frames
        for video in islice(chosen, MAX_UNREADABLE):
            try:
                clip = self._clip(video, frames, rng)
                mixed = clip if self.config.augmentation == "flip" else self._mixed(clip, rng)
                return mixed[:, : self._kept(frames, step)]
            except VideoError as error:
                log.warning("%s", error)
        raise VideoError(f"{MAX_UNREADABLE} videos in a row cannot be read; the log names them")

    def _choices(self, number: int) -> Iterator[int]:
        """The videos for clip ``number``: the first that can be read."""
        if self.mixture is not None:
            yield from self.mixture.draw(generator(self.config.seed, Purpose.MIX, number))
        epoch, place = divmod(number, len(self.videos))
        order = _order(self.config.seed, epoch, len(self.videos))
        for attempt in count(place):
            yield int(order[attempt % len(order)])

    def _kept(self, frames: int, step: int) -> int:
        """Draw the number of frames that `short_clips` leaves in this step."""
        config, rng = self.config, generator(self.config.seed, Purpose.LENGTH, step)
        groups = config.model.num_groups(frames)
        if groups > 1 and rng.random() < config.short_clips:
            groups = int(rng.integers(1, groups))
        return groups * config.model.frames_per_group

    def _mixed(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """Apply collage and blending with other clips, where they are configured."""
        for _ in range(rng.integers(MAX_PIECES + 1) if self.config.augmentation == "collage" else 0):
            clip = lay_over(clip, self._other(clip, rng), rng)
        if rng.random() < BLENDED:
            clip = torch.lerp(clip, self._other(clip, rng), float(rng.uniform(0, 0.5)))
        return clip

    def _other(self, like: Tensor, rng: np.random.Generator) -> Tensor:
        return self._clip(int(rng.integers(len(self.videos))), like.shape[1], rng)

    def _clip(self, video: int, count: int, rng: np.random.Generator) -> Tensor:
        config, size = self.config, self.config.model.native_size
        filmed = config.camera > 0 and rng.random() < config.camera
        sides = (max(config.short_sides),) if filmed else config.short_sides
        side, stride = int(rng.choice(sides)), int(rng.choice(config.strides))
        frames = self.videos.clip(video, side, count, stride, position=rng.random())
        if config.augmentation == "flip":
            clip = frames_to_video(_crop(frames, size, (0.5, 0.5)))
        else:
            frames = frames.flip(0) if rng.random() < 0.5 else frames
            if filmed:
                clip = film(frames_to_video(frames), size, rng)
            else:
                clip = frames_to_video(_crop(frames, size, (rng.random(), rng.random())))
            clip = (clip * rng.uniform(0.8, 1.2) + rng.uniform(-0.1, 0.1)).clamp(-1, 1)
            clip = clip[torch.from_numpy(rng.permutation(3))]
            clip = clip.flip(-2) if rng.random() < 0.5 else clip
            clip = clip.mT if clip.shape[-2] == clip.shape[-1] and rng.random() < 0.5 else clip
        return clip.flip(-1) if rng.random() < 0.5 else clip


def training_batches(
    refs: list[VideoRef], config: TrainConfig, first_step: int, rank: int, num_processes: int
) -> DataLoader[Tensor]:
    """This process's share of each step's batch from ``first_step`` on: (clips / num_processes, 3, F, H, W).

    Raises:
        ValueError: the batch cannot be shared evenly, or ``mix`` is of other data sets than there are.
        VideoError: with ``in_memory``, a video cannot be read.
    """
    for chunks in config.chunk_choices:
        if (clips := config.clips_of_step(chunks)) % (num_processes * config.accumulate):
            got = f"got {config.batch_size}" + (f", {clips} of {chunks} chunks" if clips != config.batch_size else "")
            raise ValueError(
                f"batch_size must be a multiple of the {num_processes} processes times accumulate = "
                f"{config.accumulate}, {got}"
            )
    size, strict = config.model.native_size, config.strict
    videos: Videos = (
        VideosInMemory(refs, config.short_sides, size, strict, config.fps)
        if config.in_memory
        else VideosOnDisk(refs, size, strict, config.fps)
    )
    # Unreferenced decoders may have threads. A forked worker does not have these, and would hang when it frees them.
    gc.collect()
    return DataLoader(
        TrainingClips(videos, config, Mixture(refs, config.mix) if config.mix else None),
        batch_sampler=_Share(config, first_step, rank, num_processes),
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
    )


def held_out_frames(ref: VideoRef, config: TrainConfig) -> Tensor:
    """The protocol of every reported number: the first ``clip_frames`` frames, centre crop resized to ``native_size``.

    Returns:
        uint8 (F, H, W, 3).
    """
    height, width = config.model.native_size
    fitted = partial(fit, height=height, width=width)
    return read_clip(ref, config.clip_frames, change=fitted, fps=config.fps, strict=config.strict)


def chunks_of_step(config: TrainConfig, step: int) -> int:
    """Draw the number of chunks of this step's clips."""
    choices = config.chunk_choices
    return choices[int(generator(config.seed, Purpose.CHUNKS, step).integers(len(choices)))]


class _Share(Sampler[list[int]]):
    """The clip numbers of each step that are one process's."""

    def __init__(self, config: TrainConfig, first_step: int, rank: int, num_processes: int) -> None:
        self.steps = range(first_step, config.steps)
        self.config = config
        self.rank = rank
        self.num_processes = num_processes

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            size = self.config.clips_of_step(chunks_of_step(self.config, step)) // self.num_processes
            first = step * self.config.batch_size + self.rank * size
            yield list(range(first, first + size))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_videos: int) -> np.ndarray:
    return generator(seed, Purpose.ORDER, epoch).permutation(num_videos)


def _resize(frames: Tensor, short_side: int, min_size: tuple[int, int]) -> Tensor:
    """uint8 (F, H, W, 3) to ``short_side``, keeping the aspect ratio unless ``min_size`` forbids it."""
    scale = short_side / min(frames.shape[1:3])
    height, width = (max(round(n * scale), low) for n, low in zip(frames.shape[1:3], min_size, strict=True))
    return resize(frames, height, width)


def _crop(frames: Tensor, size: tuple[int, int], where: tuple[float, float]) -> Tensor:
    """``size`` out of (F, H, W, 3), ``where`` in [0, 1) from its first to its last place down and across."""
    top, left = (int(at * (have - want + 1)) for at, have, want in zip(where, frames.shape[1:3], size, strict=True))
    return frames[:, top : top + size[0], left : left + size[1]]
