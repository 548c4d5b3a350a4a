"""The CPU engine under masks of any two ranges, on every instruction set that this machine runs."""

import pytest
import torch
from hypothesis import given, settings
from test_ranges import checked_by, dense, prefixes, two_ranges

from tivtok_kernels import RangeLayout, SifLayout, range_attention
from tivtok_kernels.cpu import backend, plan
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.problem import Problem

if reason := backend.why_not(Problem(torch.device("cpu"))):
    pytest.skip(reason, allow_module_level=True)

VARIANTS = [name for name, runs in backend.variants().items() if runs]

# Longer than blocks of keys, pieces of runs and units; A shared by several runs, or of one alone and the longer one; no
# B; keys that nobody sees, and keys before the rows' own.
RUNS = [(700, (0, 150), (150, 450)), (3, (0, 150), (450, 451)), (5, (0, 150), (0, 0)), (1, (451, 460), (3, 400))]
RUNS += [(40, (160, 440), (461, 600)), (2, (0, 0), (7, 140))]
LONG = (RangeLayout.from_runs(RUNS, 640), dense(RUNS, 640))
WINDOWS = SifLayout.from_lengths([20, 0, 4], [[30, 17, 0, 25], [70, 3], []]).frame_windows(1, 1)


@pytest.fixture(autouse=True)
def as_before():
    before = backend.variant()
    yield
    backend.use_variant(before)


def check_variants(layout, mask, dtype=torch.float32, **shape):
    check = checked_by(layout, mask, Arithmetic.of("cpu", dtype), dtype=dtype, **shape)
    for name in VARIANTS:
        backend.use_variant(name)
        check("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ranges_longer_than_blocks_and_units(dtype):
    check_variants(*LONG, heads=4, kv_heads=2, head_dim=24, dtype=dtype)


@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
def test_rows_too_few_for_a_vector_go_over_shared_keys_together(heads):
    """Continuations of a few rows of prefixes of a block of keys and more, more of them than go together."""
    few = [1, 3, 12, 24, 25, 6, 7, 0, 40, 2] + [11] * 40
    for prefix, queries in (([128, 3], True), ([300, 130], False)):
        layout = RangeLayout.shared_prefix(prefix, [few, [5, 5]], prefix_queries=queries)
        check_variants(layout, prefixes(prefix, [few, [5, 5]], queries), heads=heads[0], kv_heads=heads[1], head_dim=24)


@given(two_ranges())
@settings(deadline=None)
def test_any_two_ranges(case):
    try:
        layout = RangeLayout.from_runs(*case)
    except ValueError:
        return  # keys that too many runs see
    if layout.q_rows:
        check_variants(layout, dense(*case))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_bits_for_any_number_of_threads(variant):
    backend.use_variant(variant)
    q, k, v = (torch.randn(n, 4, 24, requires_grad=True) for n in (LONG[0].q_rows, 640, 640))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = range_attention(q, k, v, LONG[0], backend="cpu")
            results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, results[0], strict=True))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_notice_nothing_of_what_they_do_not_see(poison):
    """Poison the queries, keys, values and output gradients of every fifth row."""
    mask = WINDOWS.visibility()
    inputs = list(torch.randn(4, len(mask), 1, 24))

    def run():
        *leaves, dout = (x.clone().requires_grad_(i < 3) for i, x in enumerate(inputs))
        out = range_attention(*leaves, WINDOWS, backend="cpu")
        return [out, *torch.autograd.grad(out, leaves, dout)]

    clean = run()
    bad = torch.zeros(len(mask), dtype=torch.bool)
    bad[53:60] = True
    for x in inputs:
        x[bad] = poison
    reached = bad | (mask & bad).any(1)  # rows that see a bad key; keys are reached through these and through bad rows
    keys_reached = bad | mask[reached].any(0)
    for got, expected, touched in zip(run(), clean, (reached, reached, keys_reached, keys_reached), strict=True):
        assert 0 < int(touched.sum()) < len(mask)
        assert torch.equal(got[~touched], expected[~touched])
        assert not got[bad].isfinite().any()


@pytest.mark.parametrize("layout", [LONG[0], WINDOWS, RangeLayout.block_diffusion([200, 70], 16)])
def test_units_and_runs_cover_the_mask_once(layout):
    made = plan.make_plan(layout, "ranges", 96)
    seen = torch.zeros(layout.q_rows, layout.k_rows, dtype=torch.int64)
    for _, a, a_len, frame, frames, first, end, *_ in made.units.tolist():
        for row, rows, key, keys in made.frames[frame : frame + frames].tolist():
            taken = slice(row + first, row + end) if frames == 1 else slice(row, row + rows)
            seen[taken, a : a + a_len] += 1
            seen[taken, key : key + keys] += 1
    assert torch.equal(seen, layout.visibility().long())
    gradients = plan.plan_gradients(layout, 2)
    for table, expected in ((gradients.row_runs, seen), (gradients.key_runs, seen.T)):
        found = torch.zeros_like(expected)
        for start, length, a, a_len, b, b_len in table.tolist():
            found[start : start + length, a : a + a_len] += 1
            found[start : start + length, b : b + b_len] += 1
        assert torch.equal(found, expected)
        assert int(table[:, 1].sum()) == len(expected)
