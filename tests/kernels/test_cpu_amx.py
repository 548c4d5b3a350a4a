"""bfloat16 in AMX tiles against the oracle, where a processor has them; tests/cpu_engine runs the kernels anywhere."""

from dataclasses import replace

import pytest
import torch
from cpu_cases import UNITS, in_units
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Case, check, make_case, run
from test_ranges import check as check_ranges
from test_ranges import dense, prefixes, two_ranges

from tivtok_kernels import RangeLayout, SifLayout, backends, sif_attention
from tivtok_kernels.cpu import backend, plan
from tivtok_kernels.problem import Problem

CPU = torch.device("cpu")
if backend.why_not(Problem(CPU)) or not backend.variants().get("amx"):
    pytest.skip("needs the CPU engine on a processor with AMX", allow_module_level=True)

SCOPES = ("clip", "tiv", "broadcast")
RAGGED = SifLayout.from_lengths([3, 0, 5, 2, 0], [[4, 4, 0, 7], [7, 0, 13], [], [4, 4, 4], []])
# Several blocks of keys; TIV keys that end in the middle of a tile, at a tile, in the last tile of a block; few rows.
BLOCKS = SifLayout.from_lengths([300, 64, 250], [[131, 3, 270], [10, 130, 2], [5, 40]])
PIECES = SifLayout.from_lengths([60, 7], [[400, 0, 90], [250]])


@pytest.fixture(autouse=True)
def amx():
    before = backend.variant()
    backend.use_variant("amx")
    yield
    backend.use_variant(before)


@pytest.fixture
def small_units(monkeypatch):
    """Units of a few rows: frames and TIV rows cut where no tile ends, and merged."""
    monkeypatch.setattr(plan, "PAIRS_PER_UNIT", 300)
    monkeypatch.setattr(backend, "_FORWARD_ROWS", 96)
    forget_plans()
    yield
    forget_plans()


def forget_plans():
    plan.make_plan.cache_clear()
    for layout in (RAGGED, BLOCKS, PIECES):
        layout.calls.clear()


def check_bfloat16(case: Case) -> None:
    check(case, "cpu", torch.bfloat16)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("layout", [RAGGED, BLOCKS], ids=["ragged", "blocks"])
def test_within_budget(layout, scope):
    check_bfloat16(make_case(layout, scope, heads=2, kv_heads=1, head_dim=64))


@pytest.mark.parametrize("head_dim", [1, 8, 24, 32, 40, 128, 136, 256])
def test_head_dims(head_dim):
    for scope in SCOPES:
        check_bfloat16(make_case(RAGGED, scope, heads=1, kv_heads=1, head_dim=head_dim))


@pytest.mark.parametrize("scope", SCOPES)
def test_cut_into_units_and_merged(scope, small_units):
    check_bfloat16(make_case(PIECES, scope, heads=6, kv_heads=2, head_dim=32))


@given(
    clips=st.lists(st.tuples(st.integers(0, 300), st.lists(st.integers(0, 70), max_size=4)), min_size=1, max_size=3),
    scope=st.sampled_from(SCOPES),
    heads=st.sampled_from([(1, 1), (2, 1)]),
    head_dim=st.sampled_from([5, 16, 48]),
    seed=st.integers(0, 99),
    **UNITS,
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_layout(clips, scope, heads, head_dim, pairs, most_rows, seed):
    layout = SifLayout.from_lengths([tiv for tiv, _ in clips], [frames for _, frames in clips])
    with in_units(pairs, most_rows):
        check_bfloat16(make_case(layout, scope, *heads, head_dim, seed))


def test_ranges_longer_than_blocks_and_units():
    runs = [(700, (0, 150), (150, 450)), (3, (0, 150), (450, 451)), (5, (0, 150), (0, 0)), (1, (451, 460), (3, 400))]
    runs += [(40, (160, 440), (461, 600)), (2, (0, 0), (7, 140))]
    layout = RangeLayout.from_runs(runs, 640)
    check_ranges(layout, dense(runs, 640), "cpu", heads=4, kv_heads=2, head_dim=24, dtype=torch.bfloat16)


def test_rows_too_few_for_a_tile_go_over_shared_keys_together():
    few = [1, 3, 8, 9, 6, 7, 0, 40, 2] + [5] * 70
    for prefix, queries in (([256, 3], True), ([300, 130], False)):
        layout = RangeLayout.shared_prefix(prefix, [few, [5, 5]], prefix_queries=queries)
        mask = prefixes(prefix, [few, [5, 5]], queries)
        check_ranges(layout, mask, "cpu", heads=4, kv_heads=2, head_dim=24, dtype=torch.bfloat16)


@given(two_ranges())
@settings(deadline=None, max_examples=40)
def test_any_two_ranges(case):
    try:
        layout = RangeLayout.from_runs(*case)
    except ValueError:
        return  # keys that too many runs see
    if layout.q_rows:
        check_ranges(layout, dense(*case), "cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_same_bits_for_any_number_of_threads(scope, small_units):
    case, before = make_case(PIECES, scope, head_dim=40).to(torch.bfloat16), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            results.append(run(case, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, expected in results[0].items():
            assert torch.equal(other[name], expected), name


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scope", ["tiv", "broadcast"])
@pytest.mark.parametrize("tiv", [3, 32, 40])
def test_never_touches_rows_out_of_scope(scope, poison, tiv):
    """Poison every row of frame 2 of the first clip: only its own rows may notice."""
    layout = SifLayout.from_lengths([tiv, 2], [[20, 5, 6], [4, 5]])
    case = make_case(layout, scope).to(torch.bfloat16)
    clean = run(case, "cpu")
    first = 20 if scope == "broadcast" else tiv + 20
    rows = torch.arange(case.inputs["q"].shape[0])
    poisoned = (rows >= first) & (rows < first + 5)
    for name in ("q", "k", "v"):
        case.inputs[name][poisoned] = poison
    got = run(case, "cpu")
    assert not got["out"][poisoned].isfinite().any()
    for name in ("out", "lse"):
        assert torch.equal(got[name][~poisoned], clean[name][~poisoned]), name


@pytest.mark.parametrize("payload", [0x7F81, 0x7FC0, 0x7FFF, -1, -0x7F])
def test_nan_of_any_payload_reaches_every_row_that_sees_it(payload):
    for where in (1, 2):  # a key, a value
        inputs = torch.randn(3, 9, 1, 16).to(torch.bfloat16)
        inputs[where, 4, 0, 3] = torch.tensor(payload, dtype=torch.int16).view(torch.bfloat16)
        out, lse = sif_attention(*inputs, SifLayout.from_lengths([2], [[4, 3]]), backend="cpu", return_lse=True)
        sees = torch.arange(9) < 6
        seen = out[sees].isnan()
        assert (seen.all() and lse[sees].isnan().all()) if where == 1 else seen[..., 3].all()
        assert out[~sees].isfinite().all() and lse[~sees].isfinite().all()


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_scale_of_any_sign(scale):
    check_bfloat16(make_case(RAGGED, head_dim=16, scale=scale))


def test_rows_and_keys_of_very_different_magnitudes():
    """Scores of hundreds in both directions and of next to nothing: maxima rise from block to block, weights vanish."""
    case = make_case(BLOCKS, head_dim=32)
    sizes = torch.logspace(-2, 1, len(case.dout)).view(-1, 1, 1)
    check_bfloat16(replace(case, inputs={name: x * sizes for name, x in case.inputs.items()}))


def test_other_dtypes_are_left_to_vectors():
    for dtype in (torch.float32, torch.float16):
        case, results = make_case(BLOCKS, head_dim=64).to(dtype), []
        for name in ("amx", "avx512"):
            backend.use_variant(name)
            results.append(run(case, "cpu"))
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_subnormal_numbers_are_read_as_zero():
    values = torch.arange(1 << 15, dtype=torch.int16).view(torch.bfloat16)
    values = values[values.isfinite()].view(-1, 1, 16)
    layout = SifLayout.from_lengths([0], [[1] * len(values)])
    out = sif_attention(torch.zeros_like(values), torch.zeros_like(values), values, layout, backend="cpu")
    assert torch.equal(out, torch.where(values < torch.finfo(torch.bfloat16).tiny, 0.0, values))


def test_torch_finds_its_tiles_as_it_left_them():
    """torch multiplies in tiles of another size on the same thread, before, between and after."""
    a, b = torch.randn(2, 96, 96).to(torch.bfloat16)
    case, expected = make_case(RAGGED, head_dim=64).to(torch.bfloat16), a @ b
    first = run(case, "cpu")
    for _ in range(3):
        assert torch.equal(a @ b, expected)
        assert torch.equal(run(case, "cpu")["out"], first["out"])


def test_auto_takes_it_for_heads_of_any_width():
    backends.choose.cache_clear()
    chosen = [backends.choose("attention", "auto", Problem(CPU, torch.bfloat16, dim)) for dim in (64, 128)]
    backends.choose.cache_clear()
    assert chosen == ["cpu", "cpu"]
