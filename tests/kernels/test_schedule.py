"""Work lists: every visible pair exactly once, longest first, pieces in order."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import calls_in

from tivtok_kernels import SifLayout, schedule

CPU = torch.device("cpu")
SCOPES = ("clip", "tiv", "broadcast")
LAYOUTS = st.builds(
    lambda clips: SifLayout.from_lengths([tiv for tiv, _ in clips], [frames for _, frames in clips]),
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 20), max_size=4)), min_size=1, max_size=4),
)


@given(layout=LAYOUTS, scope=st.sampled_from(SCOPES), workers=st.sampled_from([1, 7, 50, 10**6]), fill=st.booleans())
@settings(max_examples=60, deadline=None)
def test_tiles_cover_the_mask_exactly_once(layout, scope, workers, fill):
    visible = layout.visibility(scope).long()
    apart = layout.tiv_tokens if scope == "broadcast" else 0
    call = (layout, scope, 8, 4, 2, workers, CPU)

    seen = torch.zeros_like(visible)
    for row, row_end, a, a_end, b, b_end, _, _ in schedule.query_work(*call, fill=fill).tiles.tolist():
        seen[row:row_end, a:a_end] += 1  # where TIV keys are apart, A counts their rows: the first columns
        seen[row:row_end, apart + b : apart + b_end] += 1
    assert torch.equal(seen, visible)

    seen = torch.zeros_like(visible)
    for row, row_end, a, a_end, b, b_end, _, in_tiv in schedule.key_work(*call).tiles.tolist():
        first = 0 if in_tiv else apart
        seen[a:a_end, first + row : first + row_end] += 1
        seen[b:b_end, first + row : first + row_end] += 1
    assert torch.equal(seen, visible)


@given(layout=LAYOUTS, scope=st.sampled_from(SCOPES), workers=st.sampled_from([1, 50, 10**6]))
@settings(max_examples=60, deadline=None)
def test_merges_name_the_pieces_of_split_tiles_in_order(layout, scope, workers):
    for make in (schedule.query_work, schedule.key_work):
        work = make(layout, scope, 8, 4, 2, workers, CPU)
        tiles = work.tiles.tolist()
        pieces = {slot: (row, row_end, in_tiv) for row, row_end, *_, slot, in_tiv in tiles if slot >= 0}
        assert sorted(pieces) == list(range(work.num_slots))
        merged = []
        for row, row_end, first, count, in_tiv, *_ in work.merges.tolist():
            assert count > 1
            merged += range(first, first + count)
            assert all(pieces[slot] == (row, row_end, in_tiv) for slot in range(first, first + count))
        assert sorted(merged) == list(range(work.num_slots))
        assert (work.num_tiles, work.num_merges) == (len(tiles), len(work.merges))


def steps(work: schedule.WorkList, step: int) -> list[int]:
    return [-(-(a_end - a + b_end - b) // step) for _, _, a, a_end, b, b_end, _, _ in work.tiles.tolist()]


def test_long_global_rows_are_split_by_the_share_of_a_worker():
    """One T128 clip of 16 video frames on 396 workers: 12 heads, 17 tiles of 64 rows per frame, 2 of TIV rows."""
    layout = SifLayout.uniform(batch=1, num_tiv=96, num_frames=4, frame_tokens=1032)
    whole = steps(schedule.query_work(layout, "clip", 64, 128, 12, 1, CPU), 128)
    assert sorted(whole, reverse=True) == whole == [33, 33] + [9] * 68
    share = -(-12 * sum(whole) // 396)
    split = schedule.query_work(layout, "clip", 64, 128, 12, 396, CPU)
    assert steps(split, 128) == [16, 17, 16, 17] + [9] * 68
    assert max(steps(split, 128)) <= share
    assert (split.num_slots, split.num_merges) == (4, 2)


def test_a_last_round_is_filled_with_pieces():
    """One T128 clip, frames alone: 24 tiles of nine steps for 12 heads, 288 items on 132 workers."""
    layout = SifLayout.uniform(batch=1, num_tiv=96, num_frames=4, frame_tokens=1032)
    call = (layout, "broadcast", 192, 128, 12, 132, CPU)
    assert steps(schedule.query_work(*call), 128) == [9] * 24
    filled = schedule.query_work(*call, fill=True)
    assert steps(filled, 128) == [9] * 22 + [3] * 6 and (filled.num_slots, filled.num_merges) == (6, 2)


@pytest.mark.parametrize("heads", [11, 8, 64], ids=["full", "half full", "one of many"])
def test_a_last_round_that_would_not_pay_for_pieces(heads):
    layout = SifLayout.uniform(batch=1, num_tiv=96, num_frames=4, frame_tokens=1032)
    assert schedule.query_work(layout, "broadcast", 192, 128, heads, 132, CPU, fill=True).num_slots == 0


def test_short_tiles_are_never_split():
    layout = SifLayout.uniform(batch=1, num_tiv=4, num_frames=2, frame_tokens=10)
    work = schedule.query_work(layout, "clip", 8, 4, 1, 10**6, CPU)
    assert max(steps(work, 4)) == 6 < schedule.MIN_STEPS_TO_SPLIT
    assert work.num_slots == 0


def test_keys_that_nobody_sees_keep_a_tile_for_their_zero_gradients():
    layout = SifLayout.from_lengths([3, 2], [[], [4]])
    tiles = schedule.key_work(layout, "broadcast", 8, 4, 1, 1, CPU).tiles.tolist()
    assert [tile for tile in tiles if tile[7] == 1 and tile[0] == 0] == [[0, 3, 0, 0, 0, 0, -1, 1]]


def test_work_lists_are_cached():
    layout = SifLayout.uniform(batch=1, num_tiv=4, num_frames=2, frame_tokens=10)
    again = SifLayout.from_lengths([4], [[10, 10]])
    assert schedule.query_work(layout, "clip", 8, 4, 1, 1, CPU) is schedule.query_work(again, "clip", 8, 4, 1, 1, CPU)


def calls_of_planning(num_frames: int) -> int:
    """Functions that Python calls, its own and C's, from a new layout to the work lists of both passes."""
    layout = SifLayout.from_lengths([96] * 8, [[200 + (17 * t + c) % 60 for t in range(num_frames)] for c in range(8)])

    def plan():
        for make in (schedule.query_work, schedule.key_work):
            make(layout, "clip", 64, 64, 12, 264, CPU)

    return calls_in(plan)


def test_planning_does_nothing_frame_by_frame():
    few = calls_of_planning(9)
    assert few > 50 and calls_of_planning(128) <= few + 5


def test_tables_are_uploaded_on_a_stream_of_their_own(monkeypatch):
    """The host waits for the copy alone; `hold` says who uses the memory, which belongs to that stream."""
    log = []

    class Stream:
        def __init__(self, device):
            self.device = device

        def synchronize(self):
            log.append("wait for the copy")

    class Table:
        def pin_memory(self):
            log.append("pin")
            return self

        def to(self, device, non_blocking):
            log.append(("copy", non_blocking, current[-1]))
            return self

    @contextmanager
    def entered(stream):
        current.append(stream)
        yield
        current.pop()

    current, gpu = ["the caller's"], torch.device("cuda", 0)
    monkeypatch.setattr(torch, "from_numpy", lambda table: Table())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    schedule._stream_of_copies.cache_clear()
    schedule.upload(np.zeros((1, 8), np.int32), gpu)
    copies = schedule._stream_of_copies(gpu)
    schedule._stream_of_copies.cache_clear()
    assert log == ["pin", ("copy", True, copies), "wait for the copy"]


def test_upload_during_a_graph_capture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    layout = SifLayout.uniform(batch=1, num_tiv=1, num_frames=1, frame_tokens=1)
    with pytest.raises(RuntimeError, match="run it once before the capture"):
        schedule.query_work(layout, "clip", 8, 4, 1, 1, torch.device("cuda", 0))


class Memory:
    """A tensor that notes the streams that the allocator is told of."""

    def __init__(self):
        self.told = []

    def record_stream(self, stream):
        self.told.append(stream)


def test_the_allocator_is_told_once_of_every_stream_that_reads_a_list(monkeypatch):
    stream = SimpleNamespace(raw=7)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.raw is None)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: stream.raw, raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream {stream.raw}")
    monkeypatch.setattr(schedule, "_captured", {})
    one, other = (SimpleNamespace(memory=Memory(), streams=set()) for _ in range(2))
    device, plan = torch.device("cuda", 0), object()
    for raw in (7, 7, 9, 7):
        stream.raw = raw
        assert schedule.hold(plan, device, one, None) is plan
    schedule.hold(plan, device, one, other)
    assert one.memory.told == ["stream 7", "stream 9"] and other.memory.told == ["stream 7"]
    stream.raw = None  # a capture: kept for good, since a replay says nothing
    schedule.hold(plan, device, one, other)
    assert schedule._captured == {id(plan): plan} and len(one.memory.told) == 2
    schedule.hold(plan, torch.device("cpu"), one)
    assert len(one.memory.told) == 2
