"""Derivatives beyond the first in reverse mode: right, or an error; never silently zero."""

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from tivtok_kernels import SifLayout, available_backends, broadcast_attention, sdpa, sif_attention
from tivtok_kernels.prepare import prepare_qk

LAYOUT = SifLayout.from_lengths([3, 0], [[4, 2], [2, 3]])
ROWS = LAYOUT.total_tokens

# The interpreter takes a tenth of a second for each run of rows, head and pass, and derivatives make many.
SMALL = SifLayout.from_lengths([2, 0], [[2, 1], [1]])
INTERPRETED = pytest.mark.skipif(available_backends("cpu")["triton"] != "ok", reason="needs triton's interpreter")
REFUSING = ["auto", "sdpa", pytest.param("triton", marks=INTERPRETED)]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def sif(backend, dtype=torch.float32, sizes_of=None):
    """A function of one tensor (its queries, keys and values all depend on it), and a point.

    Args:
        sizes_of: the backend whose sizes to take, if not those of ``backend``.
    """
    layout, heads = (SMALL, 1) if (sizes_of or backend) == "triton" else (LAYOUT, 2)
    point = draw(layout.total_tokens, heads, 8, dtype=dtype)
    return lambda x: sif_attention(x, x.cos(), x.sin(), layout, backend=backend), point


def broadcast(backend, dtype=torch.float32):
    def call(x):
        tiv = x[:, 0, :2]
        return broadcast_attention(x, x.cos(), x.sin(), tiv, 2 * tiv, backend=backend)

    return call, draw(*((2, 1, 3, 1, 8) if backend == "triton" else (2, 2, 3, 2, 8)), dtype=dtype)


def prepare(backend, dtype=torch.float32):
    weights = draw(16, seed=1), draw(16, seed=2)

    def call(x):
        q, k, v = prepare_qk(x, 2, norm=weights, backend={"reference": "eager", "sdpa": "eager"}.get(backend, backend))
        return q + k.square() + v

    return call, draw(5, 3 * 2 * 16, dtype=dtype)


def dual_tangent(function, x, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent


FORWARD = {
    "dual numbers": dual_tangent,
    "dual numbers without grad": torch.no_grad()(dual_tangent),
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,))[1],
    "jvp without grad": torch.no_grad()(lambda f, x, t: torch.func.jvp(f, (x,), (t,))[1]),
    "jvp of what requires grad": lambda f, x, t: torch.func.jvp(f, (x.requires_grad_(),), (t,))[1],
    "jacfwd": lambda f, x, t: torch.func.jacfwd(f)(x).flatten(-x.ndim) @ t.flatten(),
}


@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("make", [sif, broadcast])
@pytest.mark.parametrize("backend", REFUSING)
def test_forward_mode_raises(backend, make, mode):
    function, x = make(backend)
    with pytest.raises(NotImplementedError, match=r'no forward-mode derivative.*"reference" has one'):
        FORWARD[mode](function, x, torch.ones_like(x))


@INTERPRETED
@pytest.mark.parametrize("mode", FORWARD)
def test_forward_mode_of_the_fused_preparation_raises(mode):
    function, x = prepare("triton")
    with pytest.raises(NotImplementedError, match=r'no forward-mode derivative.*"eager" has one'):
        FORWARD[mode](function, x, torch.ones_like(x))


@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("make", [sif, broadcast, prepare])
def test_forward_mode_of_the_reference(make, mode):
    """Against central differences: h^2 of truncation and 1e-16 / h of rounding, with h = 1e-5."""
    function, x = make("reference", torch.float64)
    tangent, h = draw(*x.shape, dtype=torch.float64, seed=3), 1e-5
    expected = (function(x + h * tangent) - function(x - h * tangent)) / (2 * h)
    torch.testing.assert_close(FORWARD[mode](function, x, tangent), expected.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_a_parameter_beside_a_dual_number(backend):
    k = draw(ROWS, 2, 8).requires_grad_()
    x = draw(ROWS, 2, 8, seed=1)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda q: sif_attention(q, k, k, LAYOUT, backend=backend), (x,), (x,))


def test_tensors_without_tangents_pass_while_dual_numbers_are_about():
    x = draw(ROWS, 2, 8)
    with forward_ad.dual_level():
        out = sif_attention(x, x, x, LAYOUT)
        assert forward_ad.unpack_dual(out).tangent is None
    torch.testing.assert_close(out, sif_attention(x, x, x, LAYOUT))


def second_derivative(function, x):
    x = x.requires_grad_()
    gradient = torch.autograd.grad(function(x).sin().sum(), x, create_graph=True)[0]
    return torch.autograd.grad(gradient.square().sum(), x)[0]


@pytest.mark.parametrize("make", [sif, broadcast])
@pytest.mark.parametrize("backend", REFUSING)
def test_second_derivatives_raise(backend, make):
    with warnings.catch_warnings(), pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        warnings.simplefilter("error")
        second_derivative(*make(backend))


@INTERPRETED
def test_second_derivatives_of_the_fused_preparation_raise():
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        second_derivative(*prepare("triton"))


@pytest.mark.parametrize("make", [sif, broadcast])
def test_second_derivatives_of_the_reference(make):
    function, x = make("reference", torch.float64)
    assert torch.autograd.gradgradcheck(function, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("backend", REFUSING)
def test_create_graph_gives_first_derivatives(backend):
    function, x = sif(backend)
    x = x.requires_grad_()
    plain, kept = (torch.autograd.grad(function(x).sin().sum(), x, create_graph=graph)[0] for graph in (False, True))
    torch.testing.assert_close(kept.detach(), plain)


BACKENDS = ["reference", *REFUSING]


def check_functional(backend, transform):
    """``transform(function)(x)`` of a backend in float32 against the same of the reference in float64."""
    function, x = sif(backend)
    expected = transform(sif("reference", sizes_of=backend)[0])(x.double())
    torch.testing.assert_close(transform(function)(x).double(), expected, rtol=1e-4, atol=1e-5)


def loss(function):
    return lambda x: function(x).sin().sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_func_grad_is_that_of_autograd(backend):
    function, x = sif(backend)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(loss(function)(leaf), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss(function))(x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vjp_and_jacrev(backend):
    check_functional(backend, lambda f: lambda x: torch.func.vjp(f, x)[1](draw(*x.shape, seed=5).to(x))[0])
    check_functional(backend, lambda f: torch.func.jacrev(lambda x: f(x)[:2, 0, :2]))


@pytest.mark.parametrize("backend", REFUSING)
def test_torch_func_refuses_the_second_derivative(backend):
    function, x = sif(backend)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        torch.func.grad(lambda x: torch.func.grad(loss(function))(x).square().sum())(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transform", ["vmap", "vmap of grad", "grad of vmap", "nested vmap"])
def test_vmap_is_one_call_of_more_clips(backend, transform):
    function, point = sif(backend)
    x = draw(2, 3, *point.shape)
    each = {"vmap of grad": torch.func.grad(loss(function))}.get(transform, function)
    if transform == "grad of vmap":
        got = torch.func.grad(lambda x: torch.func.vmap(function)(x.flatten(0, 1)).sin().sum())(x)
        leaf = x.clone().requires_grad_()
        samples = torch.stack([function(sample) for sample in leaf.flatten(0, 1)])
        expected = torch.autograd.grad(samples.sin().sum(), leaf)[0]
    else:
        nested = torch.func.vmap(torch.func.vmap(each), in_dims=1, out_dims=1)
        got = nested(x) if transform == "nested vmap" else torch.func.vmap(each)(x.flatten(0, 1)).unflatten(0, (2, 3))
        expected = torch.stack([torch.stack([each(sample) for sample in row]) for row in x])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_vmap_over_some_inputs_only(backend):
    q, k = draw(3, ROWS, 2, 8), draw(ROWS, 2, 8, seed=1)
    got = torch.func.vmap(lambda q: sif_attention(q, k, k, LAYOUT, backend=backend, return_lse=True))(q)
    for i in range(3):
        for x, y in zip(got, sif_attention(q[i], k, k, LAYOUT, backend=backend, return_lse=True), strict=True):
            torch.testing.assert_close(x[i], y)


def test_vmap_calls_the_backend_once(monkeypatch):
    calls, forward = [], sdpa.forward
    monkeypatch.setattr(sdpa, "forward", lambda call: calls.append(call.layout) or forward(call))
    function, _ = sif("sdpa")
    torch.func.vmap(function)(draw(5, ROWS, 2, 8))
    assert calls == [LAYOUT.repeat(5)]
