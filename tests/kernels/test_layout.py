"""SifLayout: the mask stated twice, densely and as segments, must be one mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tivtok_kernels import SifLayout

LENGTHS = st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 4), max_size=4)), max_size=4)
SCOPES = ("clip", "tiv", "broadcast")


def layout_of(clips) -> SifLayout:
    return SifLayout.from_lengths([tiv for tiv, _ in clips], [frames for _, frames in clips])


def from_segments(layout: SifLayout, scope: str) -> torch.Tensor:
    """The dense mask that the segments describe."""
    rows = layout.local_tokens if scope == "broadcast" else layout.total_tokens
    first_own_key = layout.tiv_tokens if scope == "broadcast" else 0
    mask = torch.zeros(rows, rows + first_own_key, dtype=torch.int64)
    for s in layout.segments(scope):
        mask[s.q_start : s.q_start + s.q_len, s.a_start : s.a_start + s.a_len] += 1
        b_start = first_own_key + s.b_start
        mask[s.q_start : s.q_start + s.q_len, b_start : b_start + s.b_len] += 1
    return mask


@given(LENGTHS, st.sampled_from(SCOPES))
@settings(deadline=None)
def test_segments_cover_the_visible_pairs_exactly_once(clips, scope):
    layout = layout_of(clips)
    assert torch.equal(from_segments(layout, scope), layout.visibility(scope).long())
    assert layout.area(scope) == int(layout.visibility(scope).sum())


@given(LENGTHS)
@settings(deadline=None)
def test_lengths_tensor_round_trip(clips):
    layout = layout_of(clips)
    assert SifLayout.from_tensor(layout.lengths) == layout
    assert SifLayout.from_tensor(layout.lengths.clone()) is SifLayout.from_tensor(layout.lengths)


def test_visibility_is_the_papers_arrowhead():
    layout = SifLayout.from_lengths([1], [[2, 1]])  # TIV, two tokens of frame 1, one of frame 2
    t, f = True, False
    assert layout.visibility("clip").tolist() == [[t, t, t, t], [t, t, t, f], [t, t, t, f], [t, f, f, t]]
    assert layout.visibility("tiv").tolist() == [[t, f, f, f], [t, t, t, f], [t, t, t, f], [t, f, f, t]]
    assert layout.visibility("broadcast").tolist() == [[t, t, t, f], [t, t, t, f], [t, f, f, t]]


def test_area_of_the_papers_t128_clip_is_28_percent_of_dense():
    layout = SifLayout.uniform(batch=1, num_tiv=96, num_frames=4, frame_tokens=1032)
    assert layout.total_tokens == 4224
    assert layout.area() == 96 * 4224 + 4128 * (96 + 1032)
    assert round(layout.area() / 4224**2, 2) == 0.28


def test_uniform_equals_from_lengths():
    layout = SifLayout.uniform(batch=2, num_tiv=3, num_frames=2, frame_tokens=4)
    assert layout == SifLayout.from_lengths([3, 3], [[4, 4], [4, 4]])
    assert layout.is_uniform and layout.num_clips == 2 and layout.total_tokens == 22
    assert not SifLayout.from_lengths([3, 3], [[4, 4], [4, 5]]).is_uniform


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SifLayout.from_lengths([1], [[2], [3]]), ValueError, "1 TIV counts and 2 lists"),
        (lambda: SifLayout.from_lengths([-1], [[2]]), ValueError, r"num_tiv\[0\] must be >= 0, got -1"),
        (lambda: SifLayout.from_lengths([1, 1], [[2], [-2]]), ValueError, r"frame_tokens\[1\].*\[-2\]"),
        (lambda: SifLayout.from_lengths([1.5], [[2]]), TypeError, "num_tiv must hold integers"),
        (lambda: SifLayout.from_lengths([1], [2]), TypeError, r"frame_tokens\[0\] must be a sequence"),
        (lambda: SifLayout.from_lengths([1], ["ab"]), TypeError, r"frame_tokens\[0\]"),
        (lambda: SifLayout.uniform(1, 2, -3, 4), ValueError, "num_frames must be >= 0, got -3"),
        (lambda: SifLayout.uniform(1, 2, 3, 4).visibility("frame"), ValueError, "'frame'"),
    ],
)
def test_wrong_lengths_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
