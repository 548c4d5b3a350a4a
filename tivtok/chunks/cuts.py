"""Cut detection: a chunk with two scenes in it looks worse than its neighbours, so "auto" ends chunks at cuts.

Cuts move to the nearest border of frame groups, which keep their places: frame f is of group f // frames per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from tivtok.video.frames import to_float

# A cut is a change that is large and stands out. (Measured on concatenated clips; docs/long-video.md.)
CUT_LEVELS = 8.0  # mean absolute change of the pixels, in levels of 8 bits
CUT_RATIO = 3.0  # to the median change of the chunk


def until_cut(video: Tensor, frames_per_group: int) -> int:
    """Count the frames of ``video`` (B, 3, F, H, W) before its first cut: whole groups, or all F.

    Float in [-1, 1] or uint8. A batch is judged by its mean.
    """
    frames = to_float(video, torch.promote_types(video.dtype, torch.float32)).unbind(dim=2)
    if len(frames) < 2:
        return len(frames)
    changes = torch.stack([(b - a).abs().mean() for a, b in pairwise(frames)]).cpu() * 127.5  # to levels of 8 bits
    cuts = (changes > CUT_LEVELS) & (changes > CUT_RATIO * changes.median())
    for frame in (cuts.nonzero().flatten() + 1).tolist():
        border = (frame + frames_per_group // 2) // frames_per_group * frames_per_group
        if 0 < border < len(frames):
            return border
    return len(frames)


def end_at_cuts(chunks: Iterable[Tensor], chunk_frames: int, frames_per_group: int) -> Iterator[Tensor]:
    """Cut the frames of ``chunks``, (B, 3, f, H, W) in [-1, 1], into chunks of up to ``chunk_frames`` that end at cuts.
    Fewer than two chunks are in memory at a time."""
    held: Tensor | None = None
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], dim=2)
        while held.shape[2] >= chunk_frames:
            length = until_cut(held[:, :, :chunk_frames], frames_per_group)
            yield held[:, :, :length]
            held = held[:, :, length:]
    while held is not None and held.shape[2]:
        length = until_cut(held, frames_per_group)
        yield held[:, :, :length]
        held = held[:, :, length:]
