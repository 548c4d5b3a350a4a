"""What a layout keeps of a call's checks and plans: later calls give the same, and are checked where they differ."""

import pytest
import torch

from tivtok_kernels import (
    BackendUnavailable,
    RangeLayout,
    SifLayout,
    api,
    available_backends,
    broadcast_attention,
    range_attention,
    sif_attention,
)

LENGTHS = [3, 2], [[4, 2], [2, 3]]
N = 16
ENGINE = available_backends("cpu", torch.float32, 8)["cpu"]


def fresh():
    """Equal layouts, of which each keeps its own."""
    return SifLayout.from_lengths(*LENGTHS)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batched(q, k, v, layout, **options):
    return sif_attention(q.unflatten(0, (2, -1)), k.unflatten(0, (2, -1)), v.unflatten(0, (2, -1)), layout, **options)


def with_tiv_apart(q, k, v, layout, **options):
    rows = layout.local_tokens
    return broadcast_attention(q[:rows], k[:rows], v[:rows], k[:5], v[:5], layout=layout, **options)


def frames_of_equal_length(q, k, v, layout, **options):
    q, k, v = (x[:12].unflatten(0, (2, 2, 3)) for x in (q, k, v))
    return broadcast_attention(q, k, v, k[:, 0], v[:, 0], **options)


CALLS = {
    "clips": (sif_attention, fresh),
    "batch": (batched, lambda: SifLayout.uniform(2, 2, 2, 3)),
    "ranges": (range_attention, lambda: fresh().frame_windows(1, 0)),
    "broadcast": (with_tiv_apart, fresh),
    "uniform broadcast": (frames_of_equal_length, fresh),
}


@pytest.mark.parametrize("backend", ["auto", "cpu", "sdpa", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_gives_what_the_first_one_does(name, backend):
    if backend == "cpu" and ENGINE != "ok":
        pytest.skip(ENGINE)
    call, make = CALLS[name]
    layout = make()
    q, k, v = (draw(N, heads, 8, seed=heads + i).requires_grad_() for i, heads in enumerate((4, 2, 2)))
    results = []
    for _ in range(3):
        out, lse = call(q, k, v, layout, backend=backend, return_lse=True)
        grads = torch.autograd.grad(out.square().sum() + lse.sin().sum(), (q, k, v))
        with torch.no_grad():
            plain = call(q, k, v, layout, backend=backend)
            both = call(q, k, v, layout, backend=backend, return_lse=True)
        assert torch.equal(plain, out) and torch.equal(both[0], out) and torch.equal(both[1], lse)
        results.append((out, lse, *grads))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, results[0], strict=True))
    expected, expected_lse = call(q.double(), k.double(), v.double(), make(), backend="reference", return_lse=True)
    torch.testing.assert_close(results[0][0].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0][1].double(), expected_lse, rtol=1e-4, atol=1e-5)


def test_other_strides_shapes_dtypes_and_options_are_other_calls():
    layout, x = fresh(), draw(N, 2, 8)
    expected = sif_attention(x, x, x, layout)
    wide = draw(N, 3, 2, 16)
    wide[..., :8] = x[:, None]
    q, k, v = wide[..., :8].unbind(1)
    assert torch.equal(sif_attention(q, k, v, layout), expected)
    assert torch.equal(
        sif_attention(x.double(), x.double(), x.double(), layout).float().isfinite(), expected.isfinite()
    )
    for options in ({"tiv_scope": "tiv"}, {"scale": 0.1}, {"scale": 2}):
        reference = sif_attention(x, x, x, fresh(), backend="reference", **options)
        torch.testing.assert_close(sif_attention(x, x, x, layout, **options), reference)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sif_attention(x, x, x, layout).dtype == torch.bfloat16
    assert torch.equal(sif_attention(x, x, x, layout), expected)


X = draw(N, 2, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layout: sif_attention(X, X.half(), X, layout), TypeError, "k must have the dtype of q"),
        (lambda layout: sif_attention(X[1:], X[1:], X[1:], layout), ValueError, "q must have the layout's 16 rows"),
        (lambda layout: sif_attention(X, X[:, :1], X, layout), ValueError, "k and v must have one shape"),
        (lambda layout: sif_attention(X, X, X.mT.contiguous().mT, layout), ValueError, "v must have a contiguous last"),
        (lambda layout: sif_attention(None, X, X, layout), TypeError, "q must be a torch.Tensor, got NoneType"),
        (lambda layout: sif_attention(X, X, X.numpy(), layout), TypeError, "v must be a torch.Tensor, got ndarray"),
        (lambda layout: sif_attention(X, X, X, layout, scale=[1]), TypeError, "scale must be a number or None"),
        (lambda layout: sif_attention(X, X, X, layout, tiv_scope="broadcast"), ValueError, "tiv_scope must be"),
        (lambda layout: sif_attention(X, X, X, layout, tiv_scope=["clip"]), ValueError, "tiv_scope must be"),
        (lambda layout: sif_attention(X, X, X, layout, backend="flash"), ValueError, "backend must be one of"),
        (lambda layout: sif_attention(X, X, X, layout, backend="cuda"), BackendUnavailable, "NVIDIA GPUs"),
        (lambda layout: range_attention(X, X, X, layout), TypeError, "must be a RangeLayout, got SifLayout"),
    ],
)
def test_a_wrong_call_is_refused_after_a_right_one(call, error, message):
    layout = fresh()
    sif_attention(X, X, X, layout)
    for _ in range(2):
        with pytest.raises(error, match=message):
            call(layout)


def test_frames_that_are_not_packed_are_refused_with_a_layout_after_a_call_without():
    x = draw(2, 2, 3, 2, 8)
    broadcast_attention(x, x, x, x[:, 0], x[:, 0])
    with pytest.raises(ValueError, match="with a layout, q must be packed"):
        broadcast_attention(x, x, x, x[:, 0], x[:, 0], layout=SifLayout.uniform(2, 3, 2, 3))


def test_a_layout_of_the_other_kind_is_refused_after_a_right_call():
    layout = RangeLayout.documents([N])
    range_attention(X, X, X, layout)
    with pytest.raises(TypeError, match="must be a SifLayout, got RangeLayout"):
        sif_attention(X, X, X, layout, tiv_scope="ranges")


def test_a_layout_keeps_few_kinds_of_calls(monkeypatch):
    monkeypatch.setattr(api, "_MOST_CALLS", 3)
    layout = fresh()
    for scale in range(1, 9):
        sif_attention(X, X, X, layout, scale=scale)
        assert 0 < len(layout.calls) <= 3
    sif_attention(X, X, X, layout, scale=8)
    assert len(layout.calls) <= 3


def test_hooks_may_give_the_backward_tensors_of_other_strides():
    def other_strides(x):
        return x if x.ndim < 3 else x.transpose(0, 1).contiguous().transpose(0, 1)

    layout = fresh()
    q, k, v = (draw(N, 2, 8, seed=i).requires_grad_() for i in range(3))
    expected = torch.autograd.grad(sif_attention(q, k, v, layout).square().sum(), (q, k, v))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, other_strides):
        out = sif_attention(q, k, v, layout).square().sum()
        grads = torch.autograd.grad(out, (q, k, v))
    assert all(torch.equal(x, y) for x, y in zip(grads, expected, strict=True))
