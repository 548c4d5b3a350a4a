"""The CPU engine against the oracle, on every instruction set that this machine runs."""

import pytest
import torch
from cpu_cases import UNITS, in_units
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Case, assert_within_budget, budgets, make_case, run

from tivtok_kernels import SifLayout, backends, broadcast_attention, sif_attention
from tivtok_kernels.cpu import backend, plan
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.problem import Problem

CPU = torch.device("cpu")
if reason := backend.why_not(Problem(CPU)):
    pytest.skip(reason, allow_module_level=True)

SCOPES = ("clip", "tiv", "broadcast")
VARIANTS = [name for name, runs in backend.variants().items() if runs]
RAGGED = SifLayout.from_lengths([3, 0, 5, 2, 0], [[4, 4, 0, 7], [7, 0, 13], [], [4, 4, 4], []])
BLOCKS = SifLayout.from_lengths([150, 30], [[131, 65], [10, 130, 2]])  # several blocks of keys, TIV keys among them
PIECES = SifLayout.from_lengths([60, 7], [[400, 0, 90], [250]])  # frames and TIV rows cut over several units


@pytest.fixture(params=VARIANTS)
def variant(request):
    before = backend.variant()
    backend.use_variant(request.param)
    yield request.param
    backend.use_variant(before)


@pytest.fixture
def small_units(monkeypatch):
    """Units of a few rows, so that small cases have slots and merges of every kind, and work for many threads."""
    monkeypatch.setattr(backend, "_WORK_PER_THREAD", 1)
    monkeypatch.setattr(plan, "PAIRS_PER_UNIT", 300)
    monkeypatch.setattr(backend, "_FORWARD_ROWS", 96)
    monkeypatch.setattr(backend, "_BACKWARD_ROWS", 96)
    forget_plans()
    yield
    forget_plans()


def forget_plans():
    plan.make_plan.cache_clear()
    for layout in (RAGGED, BLOCKS, PIECES):
        layout.calls.clear()


def check_variants(case: Case, dtype: torch.dtype) -> None:
    """As `oracle.check`, the oracle once for all variants."""
    case = case.to(dtype)
    truth, budget = run(case.to(torch.float64), "reference"), budgets(case, Arithmetic.of("cpu", dtype))
    before = backend.variant()
    try:
        for name in VARIANTS:
            if name == "amx" and dtype != torch.bfloat16:
                continue  # as avx512 does
            backend.use_variant(name)
            got = run(case, "cpu")
            for result in truth:
                assert_within_budget(f"{name} {result}", got[result], truth[result], budget[result])
    finally:
        backend.use_variant(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("layout", [RAGGED, BLOCKS], ids=["ragged", "blocks"])
def test_within_budget(layout, scope, dtype):
    check_variants(make_case(layout, scope, head_dim=64), dtype)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("head_dim", [1, 8, 24, 32, 128, 136])
def test_head_dims(head_dim, scope):
    check_variants(make_case(RAGGED, scope, heads=1, kv_heads=1, head_dim=head_dim), torch.float32)


@pytest.mark.parametrize("scope", SCOPES)
def test_cut_into_units_and_merged(scope, small_units):
    assert len(plan.make_plan(PIECES, scope, 96).frame_merges) == 2
    check_variants(make_case(PIECES, scope, heads=2, kv_heads=1, head_dim=32), torch.float32)


@pytest.mark.parametrize("scope", SCOPES)
def test_small_frames_beside_many_tiv_keys(scope):
    """Rows too few for a vector go over the TIV keys together: none notices whether and with whom."""
    layouts = [SifLayout.from_lengths([150], [frames]) for frames in ([3, 0, 12, 5, 40, 1], [3])]
    for layout in layouts:
        check_variants(make_case(layout, scope, heads=4, head_dim=32), torch.float32)
    case = make_case(layouts[0], "broadcast", head_dim=32)
    q, k, v, *tiv = case.inputs.values()
    many = broadcast_attention(q, k, v, *tiv, layout=layouts[0], backend="cpu")
    alone = broadcast_attention(q[:3], k[:3], v[:3], *tiv, layout=layouts[1], backend="cpu")
    assert torch.equal(many[:3], alone)


@pytest.mark.parametrize("scope", SCOPES)
def test_grouped_queries(scope):
    check_variants(make_case(RAGGED, scope, heads=6, kv_heads=2), torch.float32)


@given(
    clips=st.lists(st.tuples(st.integers(0, 140), st.lists(st.integers(0, 70), max_size=4)), min_size=1, max_size=3),
    scope=st.sampled_from(SCOPES),
    heads=st.sampled_from([(1, 1), (2, 1)]),
    head_dim=st.sampled_from([5, 16, 32]),
    seed=st.integers(0, 99),
    **UNITS,
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_layout(clips, scope, heads, head_dim, pairs, most_rows, seed):
    layout = SifLayout.from_lengths([tiv for tiv, _ in clips], [frames for _, frames in clips])
    with in_units(pairs, most_rows):
        check_variants(make_case(layout, scope, *heads, head_dim, seed), torch.float32)


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_scale_of_any_sign(variant, scale):
    case = make_case(RAGGED, head_dim=16)
    results = {}
    for name, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in case.inputs.values()]
        out = sif_attention(*leaves, RAGGED, scale=scale, backend=name)
        results[name] = [out, *torch.autograd.grad(out, leaves, case.dout.to(dtype))]
    for got, truth in zip(results["cpu"], results["reference"], strict=True):
        torch.testing.assert_close(got.double(), truth, atol=2e-5, rtol=1e-4)


def test_large_scores(variant):
    """Scores of hundreds, in both directions: most weights underflow, none overflows."""
    case = make_case(BLOCKS, head_dim=32)
    q, k, v = (x * f for x, f in zip(case.inputs.values(), (30, 30, 1), strict=True))
    out, lse = sif_attention(q, k, v, BLOCKS, backend="cpu", return_lse=True)
    expected, expected_lse = sif_attention(
        q.double(), k.double(), v.double(), BLOCKS, backend="reference", return_lse=True
    )
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("layout", [RAGGED, PIECES], ids=["ragged", "pieces"])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_same_bits_for_any_number_of_threads(layout, scope, small_units, variant):
    case, before = make_case(layout, scope, head_dim=32), torch.get_num_threads()
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


@pytest.mark.parametrize("parallel", [None, "torch"])
def test_threads_of_its_own_where_torch_has_no_openmp(monkeypatch, parallel):
    case, before = make_case(PIECES, head_dim=32), torch.get_num_threads()
    expected = run(case, "cpu")
    if parallel is None:
        monkeypatch.setattr(backend, "_parallel", lambda: None)
    try:
        torch.set_num_threads(3)
        got = run(case, "cpu")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_runs_on_the_threads_of_torch():
    assert backend._parallel() is not None or "OpenMP" not in torch.__config__.parallel_info()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scope", ["tiv", "broadcast"])
def test_never_touches_rows_out_of_scope(variant, scope, poison):
    """Poison every row of frame 2 of the first clip: only its own rows may notice."""
    layout = SifLayout.from_lengths([3, 2], [[4, 5, 6], [4, 5]])
    case = make_case(layout, scope)
    clean = run(case, "cpu")
    first = 4 if scope == "broadcast" else 3 + 4
    rows = torch.arange(case.inputs["q"].shape[0])
    poisoned = (rows >= first) & (rows < first + 5)
    for name in ("q", "k", "v"):
        case.inputs[name][poisoned] = poison
    case.dout[poisoned] = 0
    got = run(case, "cpu")
    assert not got["out"][poisoned].isfinite().any()
    for name in ("out", "lse", "dq", "dk", "dv"):
        kept = ~poisoned
        if name in ("dk", "dv") and scope == "tiv":
            kept &= ~(rows < 3)  # the poisoned queries see their clip's TIV keys, whose gradients they reach
        assert torch.equal(got[name][kept], clean[name][kept]), name


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0x7FC0F0F3, -0x3FFFFF])
def test_nan_of_any_payload_reaches_every_row_that_sees_it(variant, payload):
    q, k, v = torch.randn(3, 9, 1, 16)
    k[4, 0, 3] = torch.tensor(payload, dtype=torch.int32).view(torch.float32)
    out, lse = sif_attention(q, k, v, SifLayout.from_lengths([2], [[4, 3]]), backend="cpu", return_lse=True)
    sees = torch.arange(9) < 6
    assert out[sees].isnan().all() and lse[sees].isnan().all()
    assert out[~sees].isfinite().all() and lse[~sees].isfinite().all()


def test_strided_slices_and_gradients(variant):
    qkv = torch.randn(RAGGED.total_tokens, 3, 2, 24)
    strided, copied = qkv.unbind(1), [x.contiguous() for x in qkv.unbind(1)]
    results = []
    for inputs in (strided, copied):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = sif_attention(*leaves, RAGGED, backend="cpu")
        results.append([out, *torch.autograd.grad(out.sum(), leaves)])  # the gradient of a sum has strides of 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_16_bit_value_is_widened_and_narrowed_as_torch_does(variant):
    """One key per frame: the output is the value, whatever the score."""
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
        values = values[values.isfinite()].view(-1, 1, 16)
        layout = SifLayout.from_lengths([0], [[1] * len(values)])
        zeros = torch.zeros_like(values)
        out, expected = sif_attention(zeros, zeros, values, layout, backend="cpu"), values
        if variant == "amx" and dtype == torch.bfloat16:  # tiles read subnormal numbers as zero
            expected = torch.where(values.abs() < torch.finfo(dtype).tiny, 0.0, values)
        assert torch.equal(out, expected)


def test_averages_are_rounded_to_nearest(variant):
    """Two keys of equal weight: sums of neighbours lie halfway between 16-bit numbers."""
    for dtype in (torch.float16, torch.bfloat16):
        first = 128 if variant == "amx" else 64  # no subnormal bfloat16
        values = torch.arange(first, first + 64 * 16, dtype=torch.int16).view(-1, 1, 16)
        v = torch.stack([values, values + 1], 1).flatten(0, 1).view(dtype)
        layout = SifLayout.from_lengths([0], [[2] * len(values)])
        out = sif_attention(torch.zeros_like(v), torch.zeros_like(v), v, layout, backend="cpu")
        expected = (v.float().view(-1, 2, 1, 16).sum(1) / 2).to(dtype)
        assert torch.equal(out[::2], expected) and torch.equal(out[1::2], expected)


def test_auto_takes_it_on_the_cpu_but_for_what_it_cannot():
    assert backends.choose("attention", "auto", Problem(CPU, torch.float32, 64)) == "cpu"
    assert backends.choose("attention", "auto", Problem(CPU, torch.float64, 64)) == "sdpa"
    assert "float64" in backend.why_not(Problem(CPU, torch.float64))
    assert "at most 256" in backend.why_not(Problem(CPU, torch.float32, 512))
    assert "CPU tensors" in backend.why_not(Problem(torch.device("cuda"), torch.float32))


@pytest.mark.parametrize("amx", [False, True])
def test_auto_leaves_wide_bfloat16_heads_to_torch_where_it_has_matrix_units(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(backend, "variant", lambda: "avx512")
    problems = [
        Problem(CPU, dtype, dim) for dtype in (torch.float32, torch.float16, torch.bfloat16) for dim in (64, 128)
    ]
    backends.choose.cache_clear()
    chosen = [backends.choose("attention", "auto", problem) for problem in problems]
    backends.choose.cache_clear()
    assert chosen == ["cpu"] * 5 + ["sdpa" if amx else "cpu"]
    assert backends.choose("attention", "cpu", Problem(CPU, torch.bfloat16, 128)) == "cpu"


def test_arguments_are_as_many_as_the_structures_have():
    seen = {}
    real = backend._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            backend, "_run", lambda name, fields, *how: (seen.update({name: len(fields)}), real(name, fields, *how))
        )
        run(make_case(RAGGED, "broadcast"), "cpu")
    library = backend._library()
    assert seen == {name: getattr(library, f"{name}_fields")() for name in seen} and len(seen) == 2


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"name must be an instruction set.*got 'mmx'"):
        backend.use_variant("mmx")


@pytest.mark.parametrize("scope", SCOPES)
def test_units_cover_the_mask_once(scope):
    for layout in (RAGGED, PIECES, SifLayout.uniform(2, 96, 3, 700)):
        for most_rows in (96, 576):
            made = plan.make_plan(layout, scope, most_rows)
            pairs = 0
            for unit in made.units.tolist():
                num_tiv, frame, frames, row, row_end, first, end, sees_rows = unit[2:10]
                tokens = made.frames[frame : frame + frames, 1].tolist()
                rows = [row_end - row] if frames == 1 else tokens
                pairs += sum(r * (num_tiv + n) + sees_rows * num_tiv * r for r, n in zip(rows, tokens, strict=True))
                pairs += num_tiv * (end - first)
            assert pairs == layout.area(scope)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_scratch_space_does_not_follow_the_default_dtype(small_units, dtype):
    """The kernels write float32 to addresses: half the bytes would be written beyond their end."""
    case = make_case(RAGGED, "clip")
    before, expected = torch.get_default_dtype(), run(case, "cpu")
    torch.set_default_dtype(dtype)
    try:
        got = run(case, "cpu")
    finally:
        torch.set_default_dtype(before)
    for name, x in expected.items():
        assert got[name].dtype == x.dtype and torch.equal(got[name], x)
