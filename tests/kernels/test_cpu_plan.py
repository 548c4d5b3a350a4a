"""Plans of the CPU engine against the same made by plain loops, number by number."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_by_loops import Loops
from steps import nothing_collected

from tivtok_kernels import RangeLayout, SifLayout
from tivtok_kernels.cpu import backend, plan

TOKENS = st.sampled_from([0, 1, 5, 64, 130, 700])
CLIPS = st.lists(st.tuples(st.sampled_from([0, 3, 60, 100]), st.lists(TOKENS, max_size=6)), max_size=4)


def check(layout, scope, most_rows, pairs_per_unit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PAIRS_PER_UNIT", pairs_per_unit)
        made = plan.make_plan.__wrapped__(layout, scope, most_rows)
    loops = Loops(layout, scope, most_rows, pairs_per_unit)
    found = (made.units, made.frames, made.q_merges, made.k_merges, made.frame_merges)
    expected = (loops.units, loops.frames, *loops.merges.values())
    for table, rows, width in zip(found, expected, (13, 4, 4, 4, 4), strict=True):
        assert table.dtype == torch.int64 and table.is_contiguous() and table.shape == (len(rows), width)
        assert table.tolist() == [list(row) for row in rows]
    assert (made.q_slots, made.k_slots, made.frame_slots) == tuple(loops.slots.values())


@given(clips=CLIPS, most_rows=st.sampled_from([7, 40, 96, 576]), pairs=st.sampled_from([1, 500, 1 << 17]))
@settings(deadline=None)
def test_plans_are_those_of_plain_loops(clips, most_rows, pairs):
    layout = SifLayout.from_lengths([tiv for tiv, _ in clips], [frames for _, frames in clips])
    for scope in ("clip", "tiv", "broadcast"):
        check(layout, scope, most_rows, pairs)
    check(layout.frame_windows(1, 0), "ranges", most_rows, pairs)
    check(RangeLayout.documents([n for _, frames in clips for n in frames]), "ranges", most_rows, pairs)
    check(RangeLayout.shared_prefix([tiv + 1 for tiv, _ in clips], [f for _, f in clips]), "ranges", most_rows, pairs)


def steps_and_units(num_frames):
    """Lines of Python that planning both passes of a new layout takes, and the units that it makes."""
    layout = SifLayout.from_lengths([96] * 8, [[10 + (17 * t + c) % 60 for t in range(num_frames)] for c in range(8)])
    lines, units = [], 0

    def trace(frame, event, argument):
        lines.append(event)
        return trace

    before = sys.gettrace()
    with nothing_collected():
        sys.settrace(trace)
        try:
            for rows in (backend._FORWARD_ROWS, backend._BACKWARD_ROWS):
                units += len(plan.make_plan.__wrapped__(layout, "clip", rows).units)
        finally:
            sys.settrace(before)
    return len(lines), units


def test_planning_takes_no_step_per_frame():
    few, _ = steps_and_units(2)
    many, units = steps_and_units(128)
    assert 100 < few < many <= few + 3 * units < few + 128 * 8
