"""Dispatch and errors of the public functions."""

import subprocess
import sys

import pytest
import torch

from tivtok.attention import (
    BackendUnavailable,
    SifLayout,
    available_backends,
    broadcast_attention,
    plan_attention,
    range_attention,
    sif_attention,
)

LAYOUT = SifLayout.uniform(batch=2, num_tiv=2, num_frames=2, frame_tokens=3)
N = LAYOUT.total_tokens


def tensor(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


X = tensor(N, 4, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sif_attention(X, X, X, [2, 3]), TypeError, "layout must be a SifLayout, got list"),
        (lambda: sif_attention(X.numpy(), X, X, LAYOUT), TypeError, "q must be a torch.Tensor, got ndarray"),
        (lambda: sif_attention(X, X.half(), X, LAYOUT), TypeError, "k must have the dtype of q, torch.float32"),
        (lambda: sif_attention(X.int(), X, X, LAYOUT), TypeError, r"q must be float16.*got torch.int32"),
        (lambda: sif_attention(X[1:], X[1:], X[1:], LAYOUT), ValueError, f"q must have the layout's {N} rows"),
        (lambda: sif_attention(X, X[1:], X[1:], LAYOUT), ValueError, "q and k must have the same rows"),
        (lambda: sif_attention(X, X, X[:, :2], LAYOUT), ValueError, "k and v must have one shape"),
        (lambda: sif_attention(X, X[:, :3], X[:, :3], LAYOUT), ValueError, "multiple of the heads of k, got 4 and 3"),
        (lambda: sif_attention(X, X[..., :4], X[..., :4], LAYOUT), ValueError, "same head_dim > 0, got 8 and 4"),
        (lambda: sif_attention(X[0], X, X, LAYOUT), ValueError, "q must have at least 3 dimensions"),
        (
            lambda: sif_attention(X[None, None], X[None, None], X[None, None], LAYOUT),
            ValueError,
            r"q must be \(N, H, D",
        ),
        (lambda: sif_attention(X[None], X[None], X[None], LAYOUT), ValueError, "needs a uniform layout of 1 clips"),
        (lambda: sif_attention(X, X.mT.contiguous().mT, X, LAYOUT), ValueError, "k must have a contiguous last"),
        (lambda: sif_attention(X, X, X, LAYOUT, tiv_scope="all"), ValueError, "tiv_scope must be.*got 'all'"),
        (lambda: sif_attention(X, X, X, LAYOUT, tiv_scope="broadcast"), ValueError, "tiv_scope must be"),
        (lambda: sif_attention(X, X, X, LAYOUT, backend="flash"), ValueError, "backend must be one of.*got 'flash'"),
        (lambda: sif_attention(X, X, X, LAYOUT, scale="1"), TypeError, "scale must be a number or None, got str"),
        (lambda: broadcast_attention(X, X, X, X, X), ValueError, r"without a layout, q must be \(B, T, L, H, D\)"),
        (lambda: broadcast_attention(X, X, X, X, X, layout=LAYOUT), ValueError, "q must have the layout's 12 rows"),
        (
            lambda: broadcast_attention(X[:12], X[:12], X[:12], X[:3], X[:3], layout=LAYOUT),
            ValueError,
            "k_tiv and v_tiv must have the layout's 4 TIV rows, got 3",
        ),
        (
            lambda: broadcast_attention(X[:12], X[:12], X[:12], X[:4], X[:3], layout=LAYOUT),
            ValueError,
            "k_tiv and v_tiv must have one shape",
        ),
    ],
)
def test_wrong_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_backend_asked_for_by_name_raises_with_its_reason():
    x = torch.zeros(N, 1, 8, device="meta")
    with pytest.raises(BackendUnavailable, match=r'"sdpa" cannot run this call: .* meta tensors'):
        from tivtok_kernels import backends
        from tivtok_kernels.problem import Problem

        backends.choose("attention", "sdpa", Problem(x.device, x.dtype, 8))


def test_available_backends_on_the_cpu():
    found = available_backends("cpu", torch.float32, 64)
    assert found["reference"] == found["sdpa"] == "ok"
    assert all(isinstance(reason, str) and reason for reason in found.values())
    assert available_backends("meta")["sdpa"] != "ok"


def test_imports_and_runs_without_triton():
    program = """
import sys
sys.modules["triton"] = None
import torch
from tivtok.attention import SifLayout, available_backends, sif_attention
assert [name for name in sys.modules if name.startswith("tivtok.")] == ["tivtok.attention"]
x = torch.zeros(5, 1, 8)
assert sif_attention(x, x, x, SifLayout.from_lengths([1], [[2, 2]])).shape == x.shape
print(available_backends("cuda"))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def plans_made(backend):
    """How many plans each cache of a backend has made so far."""
    from tivtok_kernels import flex, sdpa
    from tivtok_kernels.cpu import plan

    caches = {"cpu": [plan.make_plan, plan.plan_gradients], "sdpa": [sdpa._batches], "flex": [flex._block_mask]}
    if backend == "triton":
        from tivtok_kernels.triton import launch

        return [launch._cached_plan.cache_info().misses]
    return [cache.cache_info().misses for cache in caches[backend]]


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "flex", "triton"])
@pytest.mark.parametrize("scope", ["clip", "broadcast", "ranges"])
def test_what_is_planned_ahead_is_not_planned_again(backend, scope):
    if (reason := available_backends("cpu", torch.float32, 16)[backend]) != "ok":
        pytest.skip(reason)
    number = 41 + ["cpu", "sdpa", "flex", "triton"].index(backend)  # of tokens, as no other test has
    clips = SifLayout.from_lengths([3, 2], [[number, 5], [4]])
    layout = clips.frame_windows(1, 0) if scope == "ranges" else clips
    backward, grads = backend != "flex", backend != "flex"
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 16, "backend": backend, "backward": backward}
    before = plans_made(backend)
    plan_attention(layout, **shape, **({} if scope == "ranges" else {"tiv_scope": scope}))
    planned = plans_made(backend)
    assert planned > before
    rows = clips.local_tokens if scope == "broadcast" else clips.total_tokens
    q, k, v = (torch.randn(rows, heads, 16, requires_grad=grads) for heads in (4, 2, 2))
    if scope == "broadcast":
        tiv = torch.randn(clips.tiv_tokens, 2, 16)
        out = broadcast_attention(q, k, v, tiv, tiv, layout=layout, backend=backend)
    else:
        out = (range_attention if scope == "ranges" else sif_attention)(q, k, v, layout, backend=backend)
    if grads:
        out.sum().backward()
    assert plans_made(backend) == planned


def test_planning_refuses_what_the_call_would():
    with pytest.raises(BackendUnavailable, match="NVIDIA GPUs"):
        plan_attention(SifLayout.uniform(1, 1, 1, 1), heads=1, head_dim=8, backend="cuda")
    with pytest.raises(ValueError, match="multiple of the heads of k, got 3 and 2"):
        plan_attention(SifLayout.uniform(1, 1, 1, 1), heads=3, kv_heads=2, head_dim=8)
    with pytest.raises(TypeError, match="layout must be a SifLayout, got int"):
        plan_attention(3, heads=1, head_dim=8)
