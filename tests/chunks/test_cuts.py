"""Chunks end where shots do."""

from __future__ import annotations

import pytest
import torch

from tivtok.chunks.cuts import chunk_lengths, end_at_cuts, until_cut
from tivtok.video import frames_to_video


def shots(*lengths: int, level: int = 90, flicker: float = 1.0) -> torch.Tensor:
    """uint8 (F, 8, 8, 3): pictures that change by ``flicker`` from frame to frame and by ``level`` at cuts."""
    generator = torch.Generator().manual_seed(0)
    brightness = (torch.arange(len(lengths)) % 2 * level).repeat_interleave(torch.tensor(lengths))
    noise = torch.randn(sum(lengths), 8, 8, 3, generator=generator) * flicker
    return (80 + brightness[:, None, None, None] + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("cut", "end"), [(1, 16), (2, 4), (5, 4), (6, 8), (8, 8), (9, 8), (13, 12), (14, 16), (15, 16)]
)
def test_cuts_move_to_the_nearest_border_of_groups(cut: int, end: int) -> None:
    assert until_cut(frames_to_video(shots(cut, 16 - cut))[None], 4) == end


def test_the_first_of_several_cuts_counts() -> None:
    assert chunk_lengths(frames_to_video(shots(5, 6, 40))[None], 16, 4) == [4, 8, 16, 16, 7]


@pytest.mark.parametrize(
    "frames",
    [shots(16), shots(16, flicker=60), shots(8, 8, level=6), shots(8, 8, level=40, flicker=60), shots(1)],
    ids=["still", "restless", "a slight step", "a step among much change", "one frame"],
)
def test_what_is_no_cut(frames: torch.Tensor) -> None:
    assert until_cut(frames_to_video(frames)[None], 4) == len(frames)


@pytest.mark.parametrize("lengths", [(50,), (21, 19, 3), (7, 7, 7, 7, 7), (16, 16), (3,)])
def test_streaming_cuts_like_the_whole(lengths: tuple[int, ...]) -> None:
    frames = shots(*lengths)
    chunks = list(end_at_cuts(frames.split(16), 16, 4))
    assert [len(chunk) for chunk in chunks] == chunk_lengths(frames_to_video(frames)[None], 16, 4)
    assert torch.equal(torch.cat(chunks), frames)
    assert all(len(chunk) % 4 == 0 for chunk in chunks[:-1])
