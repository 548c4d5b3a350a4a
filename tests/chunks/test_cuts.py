"""Chunks end where shots do."""

from __future__ import annotations

import pytest
import torch

from tivtok.chunks.cuts import end_at_cuts, until_cut
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
    video = frames_to_video(shots(5, 6, 40))[None]
    assert [chunk.shape[2] for chunk in end_at_cuts([video], 16, 4)] == [4, 8, 16, 16, 7]


@pytest.mark.parametrize(
    "frames",
    [shots(16), shots(16, flicker=60), shots(8, 8, level=6), shots(8, 8, level=40, flicker=60), shots(1)],
    ids=["still", "restless", "a slight step", "a step among much change", "one frame"],
)
def test_what_is_no_cut(frames: torch.Tensor) -> None:
    assert until_cut(frames_to_video(frames)[None], 4) == len(frames)


@pytest.mark.parametrize("lengths", [(50,), (21, 19, 3), (7, 7, 7, 7, 7), (16, 16), (3,)])
@pytest.mark.parametrize("piece", [3, 16, 100])
def test_chunks_are_the_same_whatever_pieces_come(lengths: tuple[int, ...], piece: int) -> None:
    video = frames_to_video(shots(*lengths))[None]
    chunks = list(end_at_cuts(video.split(piece, dim=2), 16, 4))
    assert torch.equal(torch.cat(chunks, dim=2), video)
    sizes = [chunk.shape[2] for chunk in chunks]
    assert sizes == [chunk.shape[2] for chunk in end_at_cuts([video], 16, 4)]
    assert all(size % 4 == 0 for size in sizes[:-1]) and max(sizes) <= 16
