"""What a run trains on, and what it is measured on."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tivtok.training.config import TrainConfig
from tivtok.video import LeftOut
from tivtok.video.sources import Sources, VideoRef, find_sources


class SplitSources(NamedTuple):
    """Videos to train on and held-out videos, and what both were found among."""

    training: list[VideoRef]
    held_out: list[VideoRef]
    left_out: list[LeftOut]


def shared_sources(config: TrainConfig, accelerator: Accelerator) -> SplitSources:
    """`split_sources` of all processes of a run: the first one looks, so that files are listed and tars read once.

    Raises:
        VideoError, ValueError, OSError: as `split_sources`, in all of them.
    """
    found: list[SplitSources | Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            found = [split_sources(config)]
        except (ValueError, OSError) as error:
            found = [error]
    (told,) = broadcast_object_list(found)
    if isinstance(told, Exception):
        raise told
    return told


def split_sources(config: TrainConfig) -> SplitSources:
    """What a run trains on and what it is measured on.

    Raises:
        VideoError: as `find_sources`.
        ValueError: one of the two is empty.
    """
    found, left_out = find_sources(config.data)
    refs = [ref for ref in found if not any(fnmatch(ref.name, pattern) for pattern in config.excluded)]
    matching = [ref for ref in refs if any(fnmatch(ref.name, pattern) for pattern in config.held_out)]
    names = {ref.name for ref in matching}
    training = [ref for ref in refs if ref.name not in names]
    validation = find_sources(config.validation) if config.validation else Sources([], [])
    held_out = matching + validation.videos
    if not training or not held_out:
        raise ValueError(
            f"there must be videos to train on and held-out ones: {config.data} has {len(refs)} videos, "
            f"{len(matching)} of them match held_out = {list(config.held_out)}, validation is {config.validation}"
        )
    step = max(1, len(held_out) / config.held_out_clips)
    some = [held_out[int(i * step)] for i in range(min(len(held_out), config.held_out_clips))]
    return SplitSources(training, some, left_out + validation.left_out)
