"""Query and key preparation: eager torch against its definition, the interpreted kernel against eager float64."""

import sys
import warnings
from types import ModuleType

import pytest
import torch
from oracle import assert_within_budget

from tivtok_kernels import BackendUnavailable, backends, eager
from tivtok_kernels.caching import constant_when_compiled
from tivtok_kernels.error_budgets import prepare_budgets
from tivtok_kernels.prepare import prepare_qk

ROWS = 37  # fills no block of rows


def make_inputs(batch=2, rows=ROWS, heads=3, head_dim=16, norm=True, rotate=True, seed=0):
    """float32 leaves: qkv and weights; and the table, whose first rows are not rotated."""
    draw = torch.Generator().manual_seed(seed)
    inputs = {"qkv": torch.randn(batch, rows, 3 * heads * head_dim, generator=draw)}
    if norm:
        inputs |= {name: torch.randn(head_dim, generator=draw) for name in ("q_weight", "k_weight")}
    rotary = None
    if rotate:
        angles = torch.randn(rows, head_dim // 2, generator=draw)
        angles[:5] = 0
        rotary = angles.cos(), angles.sin()
    grads = [torch.randn(batch, rows, heads, head_dim, generator=draw) for _ in range(3)]
    return inputs, rotary, grads


def run(inputs, rotary, grads, dtype, backend, heads=3):
    """q, k, v and the gradient of every input, with qkv in ``dtype`` and weights in at least float32."""
    weight_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {n: x.to(dtype if n == "qkv" else weight_dtype).requires_grad_() for n, x in inputs.items()}
    norm = (leaves["q_weight"], leaves["k_weight"]) if "q_weight" in leaves else None
    qkv = prepare_qk(leaves["qkv"], heads, rotary, norm, eps=1e-6, backend=backend)
    results = dict(zip("qkv", qkv, strict=True))
    found = torch.autograd.grad(qkv, list(leaves.values()), [g.to(dtype) for g in grads])
    results |= {f"d{name}": g for name, g in zip(leaves, found, strict=True)}
    return {name: x.detach() for name, x in results.items()}


@pytest.mark.parametrize("backend", ["triton", "eager"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("norm", "rotate"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("head_dim", [16, 24, 64])
def test_within_budget(backend, dtype, norm, rotate, head_dim):
    inputs, rotary, grads = make_inputs(head_dim=head_dim, norm=norm, rotate=rotate)
    inputs["qkv"] = inputs["qkv"].to(dtype).float()
    grads = [g.to(dtype).float() for g in grads]
    check(run(inputs, rotary, grads, dtype, backend), inputs, rotary, grads, dtype)


def check(got, inputs, rotary, grads, dtype, heads=3):
    """Assert the budgets of what `run` returns; v and its gradient are copies, and exact."""
    truth = run(inputs, rotary, grads, torch.float64, "eager", heads)
    q, k, _ = inputs["qkv"].unflatten(-1, (3, heads, -1)).unbind(-3)
    norm = (inputs["q_weight"], inputs["k_weight"]) if "q_weight" in inputs else None
    budget = prepare_budgets(dtype, torch.stack([q, k]), rotary, norm, grads[:2], eps=1e-6)
    budget["v"] = torch.zeros_like(truth["v"])
    dqkv = [budget.pop("dq"), budget.pop("dk"), torch.zeros_like(truth["v"])]
    budget["dqkv"] = torch.stack(dqkv, dim=-3).flatten(-3)
    for name in truth:
        assert_within_budget(name, got[name], truth[name], budget[name])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("q", lambda x: x * (1 + 2**-9)),
        ("k", lambda x: x.roll(1, dims=-1)),
        ("dqkv", lambda x: torch.cat([x[..., :16] * 0, x[..., 16:]], dim=-1)),
        ("dqkv", lambda x: x * 1.01),
        ("dq_weight", lambda x: x - x / (2 * ROWS * 3)),
    ],
    ids=["norm a little off", "wrong pairs", "a head without gradient", "gradient 1 % too large", "one row missing"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_budget_catches_faults(dtype, name, fault):
    inputs, rotary, grads = make_inputs()
    inputs["qkv"], grads = inputs["qkv"].to(dtype).float(), [g.to(dtype).float() for g in grads]
    got = run(inputs, rotary, grads, dtype, "eager")
    with pytest.raises(AssertionError, match="over its budget"):
        check(got | {name: fault(got[name])}, inputs, rotary, grads, dtype)


def test_eager_is_norm_then_rotation_of_pairs():
    """In complex numbers: the pair (a, b) times exp(i angle)."""
    inputs, rotary, _ = make_inputs()
    qkv, weights = inputs["qkv"].double(), [inputs[n].double() for n in ("q_weight", "k_weight")]
    q, k, v = prepare_qk(qkv, 3, rotary, weights, eps=1e-6)
    parts = qkv.view(2, ROWS, 3, 3, 16)
    for i, (got, weight) in enumerate(zip((q, k), weights, strict=True)):
        a, b = torch.nn.functional.rms_norm(parts[:, :, i], (16,), weight, 1e-6).chunk(2, dim=-1)
        turned = torch.complex(a, b) * torch.complex(*(t.double() for t in rotary))[:, None]
        torch.testing.assert_close(got, torch.cat([turned.real, turned.imag], dim=-1))
    torch.testing.assert_close(v, parts[:, :, 2], rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_v_is_a_view_and_q_k_are_not(backend):
    inputs, rotary, _ = make_inputs(norm=False)
    q, k, v = prepare_qk(inputs["qkv"], 3, rotary, backend=backend)
    storage = inputs["qkv"].untyped_storage().data_ptr()
    assert v.untyped_storage().data_ptr() == storage
    assert q.untyped_storage().data_ptr() != storage and k.untyped_storage().data_ptr() != storage


def test_kernel_takes_strided_rows():
    """Rows inside wider ones, aligned (read in place) and not (copied first)."""
    inputs, rotary, _ = make_inputs(batch=1)
    expected = prepare_qk(inputs["qkv"], 3, rotary, backend="eager")
    for shift in (8, 3):
        wide = torch.full((1, ROWS, 144 + 16), float("nan"))
        wide[..., shift : shift + 144] = inputs["qkv"]
        got = prepare_qk(wide[..., shift : shift + 144], 3, rotary, backend="triton")
        for x, y in zip(got, expected, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
    inputs, rotary, grads = make_inputs(rows=rows)
    got, expected = (run(inputs, rotary, grads, torch.float32, backend) for backend in ("triton", "eager"))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])


def test_one_unused_output():
    """The gradient of k alone, as in a decoder that only hands keys on."""
    inputs, rotary, grads = make_inputs(norm=False)
    found = []
    for backend in ("triton", "eager"):
        qkv = inputs["qkv"].clone().requires_grad_()
        _, k, _ = prepare_qk(qkv, 3, rotary, backend=backend)
        found += torch.autograd.grad(k, qkv, grads[1])
    torch.testing.assert_close(*found)


def test_opcheck():
    inputs, (cos, sin), grads = make_inputs()
    qk = inputs["qkv"].view(-1, 3, 3, 16)[:, :2].requires_grad_()
    weights = [inputs[n].requires_grad_() for n in ("q_weight", "k_weight")]
    for args in (
        (qk, cos, sin, *weights, 1e-6, "triton"),
        (qk, None, None, *weights, 1e-6, "triton"),
        (qk, cos, sin, None, None, 1e-6, "triton"),
    ):
        torch.library.opcheck(torch.ops.tivtok.prepare_qk.default, args)
        dq, dk = (g.flatten(0, 1) for g in grads[:2])
        detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in args]
        torch.library.opcheck(torch.ops.tivtok.prepare_qk_backward.default, (dq, dk, *detached))


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_compiles_into_one_graph(backend):
    inputs, rotary, grads = make_inputs()
    compiled = torch.compile(prepare_qk, fullgraph=True, backend="aot_eager")
    results = []
    for function in (prepare_qk, compiled):
        qkv = inputs["qkv"].clone().requires_grad_()
        outs = function(qkv, 3, rotary, (inputs["q_weight"], inputs["k_weight"]), backend=backend)
        results.append([*outs, *torch.autograd.grad(outs, qkv, grads)])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


def test_gradients_repeat_bit_for_bit():
    inputs, rotary, grads = make_inputs(batch=3)
    first, second = (run(inputs, rotary, grads, torch.float32, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


class CompileError(Exception):
    """As a compiler would raise it."""


@pytest.fixture(params=["both passes", "the backward"])
def broken(request, monkeypatch):
    """A first backend whose kernels do not compile, in both passes or in the backward alone."""

    def fails(*inputs):
        raise CompileError("out of registers")

    module = ModuleType("broken")
    module.why_not, module.compile_errors = eager.why_not, lambda: (CompileError,)
    module.prepare_qk = fails if request.param == "both passes" else eager.prepare_qk
    module.prepare_qk_backward = fails
    monkeypatch.setitem(sys.modules, "broken", module)
    monkeypatch.setitem(backends._MODULES, "broken", "broken")
    monkeypatch.setitem(backends.NAMES, "prepare_qk", ("broken", "eager"))
    monkeypatch.setattr(backends, "_does_not_compile", set())
    caches = (backends.load, backends.choose)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_what_does_not_compile_is_said_once_and_left_to_eager(broken):
    inputs, rotary, grads = make_inputs()
    with pytest.warns(UserWarning, match=r'"broken" cannot compile .*"auto" goes on to "eager": out of registers'):
        got = run(inputs, rotary, grads, torch.float32, "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = run(inputs, rotary, grads, torch.float32, "auto")
    expected = run(inputs, rotary, grads, torch.float32, "eager")
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x)
        torch.testing.assert_close(again[name], x)
    with pytest.raises(CompileError):
        run(inputs, rotary, grads, torch.float32, "broken")


def test_named_backend_runs_or_raises():
    qkv = torch.randn(4, 3 * 16, dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match="float64"):
        prepare_qk(qkv, 1, backend="triton")
    with pytest.raises(BackendUnavailable, match="head_dim"):
        prepare_qk(torch.randn(4, 3 * 20), 1, backend="triton")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"backend": "cuda"}, ValueError, "backend"),
        ({"qkv": [1.0]}, TypeError, "qkv"),
        ({"qkv": torch.zeros(4, 48, dtype=torch.int64)}, TypeError, "qkv"),
        ({"qkv": torch.zeros(48)}, ValueError, "qkv"),
        ({"qkv": torch.zeros(48, 4).T}, ValueError, "contiguous"),
        ({"heads": 5}, ValueError, "heads=5"),
        ({"heads": 0}, ValueError, "heads=0"),
        ({"rotary": (torch.zeros(4, 8), torch.zeros(5, 8))}, ValueError, "rotary sin"),
        ({"rotary": (torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.int64))}, TypeError, "rotary sin"),
        ({"rotary": (torch.zeros(4, 8, requires_grad=True), torch.zeros(4, 8))}, ValueError, "requires grad"),
        ({"norm": (torch.ones(8), torch.ones(16))}, ValueError, "norm weight of q"),
        ({"heads": 16, "rotary": (torch.zeros(4, 0), torch.zeros(4, 0))}, ValueError, "even head_dim"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {"qkv": torch.zeros(4, 48), "heads": 1} | change
    with pytest.raises(error, match=words):
        prepare_qk(**arguments)


def test_constants_are_marked_as_torch_marks_them():
    def ours(): ...

    def theirs(): ...

    assert vars(constant_when_compiled(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}
