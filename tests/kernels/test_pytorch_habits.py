"""What users of PyTorch take for granted: autocast, compilation, determinism, FLOP counts, pickles."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from steps import calls_in
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tivtok_kernels import (
    BackendUnavailable,
    RangeLayout,
    SifLayout,
    available_backends,
    backends,
    broadcast_attention,
    ops,
    range_attention,
    sdpa,
    sif_attention,
)

LAYOUT = SifLayout.from_lengths([3, 0], [[4, 2], [2, 3]])
RANGES = LAYOUT.frame_windows(ahead=0)
ROWS = LAYOUT.total_tokens


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32, torch.float32, torch.bfloat16)], ids=str)
def test_autocast_casts_as_torchs_own_attention_does(dtypes):
    q, k, v = (draw(ROWS, 2, 8, seed=i).to(dtype).requires_grad_() for i, dtype in enumerate(dtypes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sif_attention(q, k, v, LAYOUT)
        packed = range_attention(q, k, v, RANGES)
        expected = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)))
    assert out.dtype == packed.dtype == expected.dtype == torch.bfloat16
    low = [x.detach().bfloat16() for x in (q, k, v)]
    assert torch.equal(out, sif_attention(*low, LAYOUT))
    out.float().sum().backward()
    assert [x.grad.dtype for x in (q, k, v)] == list(dtypes)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "cpu"])
def test_autocast_changes_nothing_within_a_backend(backend):
    """Results, LSE and gradients are those of the same 16-bit tensors without it."""
    if (reason := available_backends("cpu", torch.bfloat16, 8)[backend]) != "ok":
        pytest.skip(reason)
    q, k, v = (draw(ROWS, 2, 8, seed=i).bfloat16().requires_grad_() for i in range(3))
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out, lse = sif_attention(q, k, v, LAYOUT, backend=backend, return_lse=True)
            grads = torch.autograd.grad(out.float().square().sum() + lse.sin().sum(), (q, k, v))
        found.append((out, lse, *grads))
    assert found[1][1].dtype == torch.float32
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_autocast_leaves_float64_and_ends_with_its_block():
    x = draw(ROWS, 2, 8, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sif_attention(x, x, x, LAYOUT).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert sif_attention(x.float(), x.float(), x.float(), LAYOUT).dtype == torch.float32
        with pytest.raises(TypeError, match="k must have the dtype of q"):
            sif_attention(x, x.float(), x, LAYOUT)


def test_a_compiler_that_cannot_trace_what_autocast_knows_need_not(monkeypatch):
    """Torch 2.11 refuses to trace this question, others a function that is marked as this one."""
    known = torch.compiler.disable(torch.amp.is_autocast_available)
    monkeypatch.setattr(torch.amp, "is_autocast_available", known)
    torch.compiler.reset()
    call = torch.compile(lambda x: sif_attention(x, x, x, LAYOUT), backend="eager", fullgraph=True)
    x = draw(ROWS, 2, 8)
    assert call(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(x).dtype == torch.bfloat16


def test_broadcast_without_a_layout_compiles_one_program_for_all_shapes():
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(broadcast_attention, backend=counter, fullgraph=True, dynamic=True)
    for frames, tokens, tiv in ((2, 3, 4), (3, 5, 2), (4, 2, 6), (5, 7, 3)):
        q = draw(2, frames, tokens, 2, 8)
        k_tiv = draw(2, tiv, 2, 8, seed=1)
        torch.testing.assert_close(call(q, q, q, k_tiv, k_tiv), broadcast_attention(q, q, q, k_tiv, k_tiv))
    assert counter.frame_count <= 2


def test_a_group_of_processes_is_refused_in_a_whole_graph():
    group = object()
    call = torch.compile(lambda x: sif_attention(x, x, x, LAYOUT, group=group), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="group: processes cannot exchange anything in a compiled graph"):
        call(draw(ROWS, 2, 8))


def test_new_ranges_do_not_recompile():
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(range_attention, backend=counter, fullgraph=True, dynamic=True)
    for lengths in ([3, 4], [2, 2, 5], [6], [1, 8]):
        layout = RangeLayout.documents(lengths)
        x = draw(layout.q_rows, 2, 8)
        torch.testing.assert_close(call(x, x, x, layout), range_attention(x, x, x, layout))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("operator", ["sif_attention", "sif_attention_backward"])
def test_no_cuda_graph_of_a_compiled_model_holds_a_work_list(operator):
    """A replay would run the list that it was captured with; the tag keeps Inductor from capturing the operator."""
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.tivtok, operator).default.tags


@pytest.mark.parametrize("scope", ["clip", "ranges"])
def test_opcheck_of_every_operator(scope):
    """Those of attention with other scopes are checked in test_ops.py, those of preparation in test_prepare.py."""
    q, k, v = (draw(ROWS, 2, 8, seed=i).requires_grad_() for i in range(3))
    encoded = RANGES.encoded if scope == "ranges" else LAYOUT.encoded
    torch.library.opcheck(
        torch.ops.tivtok.sif_attention.default, (q, k, v, None, None, encoded, scope, 0.3, "auto", False, False)
    )
    torch.library.opcheck(torch.ops.tivtok.uniform_layout.default, (2, 3, 4, 5))


def test_uniform_layout_is_the_layouts_own_tensor():
    assert torch.equal(torch.ops.tivtok.uniform_layout(2, 3, 4, 5), SifLayout.uniform(2, 3, 4, 5).encoded)


def test_deterministic_algorithms_are_honoured(monkeypatch):
    asked = []
    monkeypatch.setattr(sdpa, "why_not", lambda problem: asked.append(problem.deterministic))
    x = draw(ROWS, 2, 8)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for enabled, warn_only in ((True, False), (True, True), (False, False)):
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            backends.choose.cache_clear()
            sif_attention(x, x, x, LAYOUT, backend="sdpa")
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        backends.choose.cache_clear()
    assert asked == [True, False, False]


@pytest.mark.parametrize(
    ("setting", "expected"), [("ieee", "ieee"), ("tf32", "tf32"), ("highest", "ieee"), ("high", "tf32")]
)
def test_both_ways_to_set_the_precision_of_float32_products(setting, expected):
    launch = pytest.importorskip("tivtok_kernels.triton.launch")
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        if setting in ("ieee", "tf32"):
            matmul.fp32_precision = setting
        else:
            torch.set_float32_matmul_precision(setting)
        assert launch.float32_math() == expected
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_flops_are_counted():
    q, k, v = (draw(ROWS, 4, 8, seed=i).requires_grad_() for i in range(3))
    with FlopCounterMode(display=False) as counter:
        sif_attention(q, k[:, :2], v[:, :2], LAYOUT).sum().backward()
    assert counter.get_total_flops() == (4 + 10) * LAYOUT.area() * 4 * 8
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        range_attention(q, k, v, RANGES)
    assert counter.get_total_flops() == 4 * RANGES.area * 4 * 8


def test_lengths_cannot_be_changed_behind_a_layout():
    x = draw(ROWS, 2, 8)
    before = sif_attention(x, x, x, LAYOUT)
    LAYOUT.lengths.zero_()
    LAYOUT.lengths.numpy()[:] = 7
    assert torch.equal(sif_attention(x, x, x, LAYOUT), before)
    with pytest.raises(ValueError, match="read-only"):
        RANGES.table[0, 0] = 7


@pytest.mark.parametrize("layout", [LAYOUT, RANGES], ids=["clips", "ranges"])
def test_layouts_are_pickled_and_copied(layout):
    for same in (pickle.loads(pickle.dumps(layout)), copy.deepcopy(layout)):
        assert same == layout and hash(same) == hash(layout) and torch.equal(same.encoded, layout.encoded)


class CompileError(Exception):
    """As a compiler would raise it."""


@pytest.fixture
def broken(monkeypatch):
    """sdpa whose kernels do not compile, and no other backend before the reference."""

    def forward(call):
        raise CompileError("out of registers")

    monkeypatch.setattr(sdpa, "forward", forward)
    monkeypatch.setattr(sdpa, "compile_errors", lambda: (CompileError,), raising=False)
    monkeypatch.setitem(backends.NAMES, "attention", ("sdpa", "reference"))
    monkeypatch.setattr(backends, "_does_not_compile", set())
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


def test_what_does_not_compile_is_said_once_and_left_to_the_next(broken):
    x = draw(ROWS, 2, 8)
    with pytest.warns(UserWarning, match=r'"sdpa" cannot compile .*"auto" goes on to "reference": out of registers'):
        out = sif_attention(x, x, x, LAYOUT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sif_attention(x, x, x, LAYOUT), out)
    assert torch.equal(out, sif_attention(x, x, x, LAYOUT, backend="reference"))


def test_asked_for_by_name_it_raises(broken):
    x = draw(ROWS, 2, 8)
    with pytest.raises(CompileError, match="out of registers"):
        sif_attention(x, x, x, LAYOUT, backend="sdpa")


def test_other_errors_are_nobodys_to_hide(broken, monkeypatch):
    monkeypatch.setattr(sdpa, "compile_errors", tuple)
    x = draw(ROWS, 2, 8)
    with pytest.raises(CompileError):
        sif_attention(x, x, x, LAYOUT)


def test_no_backend_left(monkeypatch, broken):
    monkeypatch.setitem(backends.NAMES, "attention", ("sdpa",))
    x = draw(ROWS, 2, 8)
    with pytest.raises(BackendUnavailable, match="no backend is left"):
        sif_attention(x, x, x, LAYOUT)


def test_plain_calls_cross_no_dispatcher(monkeypatch):
    """Forward and backward of ordinary tensors: the operators, a third of a small call's time, are not called."""

    def crossed(*inputs):
        raise AssertionError("an operator was called")

    x = draw(ROWS, 2, 8).requires_grad_()
    expected = torch.autograd.grad(sif_attention(x, x, x, LAYOUT, backend="reference").square().sum(), x)
    for name in ("sif_attention", "sif_attention_backward"):
        monkeypatch.setattr(ops, name, crossed)
    out = sif_attention(x, x, x, LAYOUT)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x), expected)
    with torch.no_grad():
        assert torch.equal(sif_attention(x, x, x, LAYOUT), out)


def test_whoever_watches_operators_sees_them():
    x = draw(ROWS, 2, 8).requires_grad_()

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(operator.name())
            return operator(*args, **(kwargs or {}))

    seen: list[str] = []
    with Mode():
        sif_attention(x, x, x, LAYOUT).sum().backward()
    assert {"tivtok::sif_attention", "tivtok::sif_attention_backward"} <= set(seen)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sif_attention(x, x, x, LAYOUT)
    assert "tivtok::sif_attention" in {event.name for event in profile.events()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(lambda x: sif_attention(x, x, x, LAYOUT), (draw(ROWS, 2, 8),))
    torch.testing.assert_close(traced(x), sif_attention(x, x, x, LAYOUT))


@pytest.mark.parametrize(("grads", "most"), [(False, 44), (True, 67)])
def test_a_small_call_takes_few_steps(grads, most):
    """Functions that Python calls, its own and C's, in a forward whose layout is known: host time without a clock."""
    if available_backends("cpu", torch.float32, 8)["cpu"] != "ok":
        pytest.skip("the CPU engine is not built")
    x = draw(ROWS, 2, 8).requires_grad_(grads)

    def call():
        sif_attention(x, x, x, LAYOUT, backend="cpu")

    call()
    steps = calls_in(call)
    assert 30 < steps <= most, steps
