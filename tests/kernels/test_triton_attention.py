"""Every path of the Triton kernels in the interpreter, against the float64 oracle by the error budget."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import check, make_case, run

from tivtok_kernels import SifLayout, available_backends, backends, sif_attention

pytestmark = pytest.mark.skipif(available_backends("cpu")["triton"] != "ok", reason="needs triton's interpreter")

SCOPES = ("clip", "tiv", "broadcast")
RAGGED = SifLayout.from_lengths([3, 0, 18, 2, 0], [[4, 20, 0], [7, 0, 13], [33], [], []])
PAIR = SifLayout.from_lengths([3, 5], [[17, 4], [9]])
LONG = SifLayout.from_lengths([5], [[48, 65, 117]])  # 15 steps of 16 keys under the TIV rows: three pieces


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """torch then fills what `torch.empty` returns: no result may depend on it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 x 16, so that small cases have several, full ones and tails."""
    from tivtok_kernels.triton import configs

    monkeypatch.setattr(configs, "select", lambda *_: configs.Config(16, 16, 4, 1, 1))


@pytest.fixture
def many_workers(monkeypatch):
    """So many that every tile long enough is split."""
    from tivtok_kernels.triton import configs

    monkeypatch.setattr(configs, "workers", lambda *_: 10**6)


@pytest.fixture
def bfloat16_dot(monkeypatch):
    """Mend the interpreter's product of bfloat16 matrices, whose bits it takes for integers, and lift the refusal."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from tivtok_kernels.triton import backend

    def widened(handle):
        if handle.data.dtype != np.uint16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    create_dot = InterpreterBuilder.create_dot
    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: create_dot(self, widened(a), widened(b), *rest)
    )
    monkeypatch.setattr(backend, "_interpreter_limit", lambda dtype: None)
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


@pytest.mark.parametrize("scope", SCOPES)
def test_ragged_clips(scope, small_tiles):
    check(make_case(RAGGED, scope, heads=1, kv_heads=1), "triton", torch.float32)


@pytest.mark.parametrize("scope", SCOPES)
def test_grouped_queries(scope, small_tiles):
    check(make_case(RAGGED, scope, heads=4, kv_heads=2), "triton", torch.float32)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33])
def test_lengths_at_the_edges_of_tiles(length, small_tiles):
    layout = SifLayout.from_lengths([length, 5], [[length, 16], [length]])
    check(make_case(layout, "clip", heads=1, kv_heads=1), "triton", torch.float32)


@pytest.mark.parametrize("scope", SCOPES)
def test_split_tiles(scope, small_tiles, many_workers):
    check(make_case(LONG, scope, heads=1, kv_heads=1), "triton", torch.float32)


def test_split_tiles_of_grouped_queries(small_tiles, many_workers):
    layout = SifLayout.from_lengths([5], [[48, 67]])
    check(make_case(layout, "clip", heads=4, kv_heads=2), "triton", torch.float32)


def test_tiles_that_are_not_square_and_short_ones(monkeypatch, many_workers):
    from tivtok_kernels.triton import configs

    tiles = {"forward": (32, 16, 4, 1, 1, 16), "dkdv": (16, 32, 4, 1, 1), "dq": (16, 32, 4, 1, 1)}
    monkeypatch.setattr(configs, "select", lambda kernel, *_: configs.Config(*tiles[kernel]))
    check(make_case(LONG, "clip", heads=1, kv_heads=1), "triton", torch.float32)


@pytest.mark.parametrize("head_dim", [8, 16, 40, 64, 128, 256])
def test_head_dims_in_the_tiles_that_ship_for_the_interpreter(head_dim):
    layout = SifLayout.from_lengths([9, 3], [[70, 11], [64]])
    check(make_case(layout, "clip", heads=1, kv_heads=1, head_dim=head_dim), "triton", torch.float32)


@pytest.mark.parametrize("scope", SCOPES)
def test_float16(scope, small_tiles, many_workers):
    check(make_case(LONG, scope, heads=1, kv_heads=1, head_dim=24), "triton", torch.float16)


@pytest.mark.parametrize("scope", SCOPES)
def test_bfloat16(scope, small_tiles, many_workers, bfloat16_dot):
    check(make_case(LONG, scope, heads=1, kv_heads=1), "triton", torch.bfloat16)


@given(
    clips=st.lists(st.tuples(st.integers(0, 18), st.lists(st.integers(0, 34), max_size=2)), min_size=1, max_size=2),
    scope=st.sampled_from(SCOPES),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_layout(small_tiles, clips, scope, seed):
    layout = SifLayout.from_lengths([tiv for tiv, _ in clips], [frames for _, frames in clips])
    check(make_case(layout, scope, heads=1, kv_heads=1, seed=seed), "triton", torch.float32)


@pytest.mark.parametrize("scale", [-0.4, 0.0, 1.5])
def test_scale_of_any_sign(scale, small_tiles):
    layout = SifLayout.from_lengths([5], [[17, 20]])
    check(make_case(layout, heads=1, kv_heads=1, scale=scale), "triton", torch.float32)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_strided_slices_of_a_fused_projection(offset, small_tiles):
    """Slices of one projection, with room between heads; unaligned ones are copied, not misread."""
    heads, head_dim = 2, 16
    fused = torch.randn(PAIR.total_tokens, 3, heads, head_dim + 8, requires_grad=True)
    strided = [x[..., offset : offset + head_dim] for x in fused.unbind(1)]
    results = []
    for q, k, v in (strided, [x.contiguous() for x in strided]):
        out = sif_attention(q, k, v, PAIR, backend="triton")
        results.append((out, torch.autograd.grad(out.square().sum(), fused)[0]))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


def test_expanded_output_gradients(small_tiles):
    """The gradient of a sum has strides of 0."""
    case = make_case(PAIR)
    check(replace(case, dout=torch.ones(()).expand_as(case.dout)), "triton", torch.float32)


def poisoned_equals_clean(case, poisoned, names, kept):
    """Bitwise: what ``kept`` rows get does not change when ``poisoned`` rows of q, k, v hold NaN or Inf."""
    clean = run(case, "triton")
    for poison in (float("nan"), float("inf")):
        for name in ("q", "k", "v"):
            case.inputs[name][poisoned] = poison
        got = run(case, "triton")
        for name in names:
            assert torch.equal(got[name][kept], clean[name][kept]), (name, poison)


@pytest.mark.parametrize("scope", SCOPES)
def test_other_clips_never_touch_a_clip(scope, small_tiles):
    """The middle one of three clips, whose tiles end in its neighbours' rows."""
    layout = SifLayout.from_lengths([3, 5, 3], [[20], [18, 7], [20]])
    case = make_case(layout, scope, heads=1, kv_heads=1)
    rows = torch.arange(case.inputs["q"].shape[0])
    first, last = (20, 45) if scope == "broadcast" else (23, 53)
    kept = (rows >= first) & (rows < last)
    if scope == "broadcast":
        tiv = torch.arange(layout.tiv_tokens)
        other = (tiv < 3) | (tiv >= 8)
        clean = run(case, "triton")
        case.inputs["k_tiv"][other] = case.inputs["v_tiv"][other] = float("nan")
        got = run(case, "triton")
        for name in ("dk_tiv", "dv_tiv"):
            assert torch.equal(got[name][~other], clean[name][~other]), name
    poisoned_equals_clean(case, ~kept, ("out", "lse", "dq", "dk", "dv"), kept)


@pytest.mark.parametrize("scope", ["tiv", "broadcast"])
def test_other_frames_never_touch_a_frame(scope, small_tiles):
    layout = SifLayout.from_lengths([3], [[20, 18, 20]])
    case = make_case(layout, scope, heads=1, kv_heads=1)
    rows = torch.arange(case.inputs["q"].shape[0])
    first = 20 if scope == "broadcast" else 23
    kept = (rows >= first) & (rows < first + 18)
    poisoned_equals_clean(case, ~kept & (rows >= first - 20), ("out", "lse", "dq", "dk", "dv"), kept)


def test_rows_around_a_slice_never_touch_it(small_tiles, many_workers):
    """The packed rows are cut out of buffers that are NaN all around."""
    case = make_case(SifLayout.from_lengths([5], [[48, 67]]), heads=1, kv_heads=1)
    clean = run(case, "triton")
    for name, x in case.inputs.items():
        buffer = torch.full((x.shape[0] + 32, 3, 24), float("nan"))
        case.inputs[name] = buffer[16:-16, 1:2, :16]
        case.inputs[name].copy_(x)
        assert not case.inputs[name].is_contiguous()
    got = run(case, "triton")
    for name in clean:
        assert torch.equal(got[name], clean[name]), name
