"""The Triton kernels as compiled, at real sizes: the budget, and what an interpreter cannot show."""

import pytest
import torch
from oracle import check, check_results, check_same_rows, make_case, run

from tivtok_kernels import SifLayout, backends, sif_attention
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.problem import Problem

pytestmark = pytest.mark.gpu

SCOPES = ("clip", "tiv", "broadcast")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
T128 = SifLayout.uniform(batch=1, num_tiv=96, num_frames=2, frame_tokens=1032)
RAGGED = SifLayout.from_lengths([96, 0, 384, 5, 0], [[1032, 0, 77], [7, 0, 130], [1056], [], []])


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """torch then fills what `torch.empty` returns: no result may depend on it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(case):
    """The inputs of a case as bfloat16 leaves on the GPU."""
    return [x.to("cuda", torch.bfloat16).requires_grad_() for x in case.inputs.values()]


def call(leaves, layout):
    """out, lse and gradients of a scalar of both."""
    out, lse = sif_attention(*leaves, layout, backend="triton", return_lse=True)
    return out, lse, *torch.autograd.grad(out.float().sin().sum() + lse.cos().sum(), leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("layout", [T128, RAGGED], ids=["t128", "ragged"])
def test_within_budget(layout, scope, dtype):
    check(make_case(layout, scope, heads=4, kv_heads=2, head_dim=64), "triton", dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 40, 72, 96, 128, 160, 256])
def test_head_dims(head_dim, dtype):
    layout = SifLayout.from_lengths([96, 7], [[520, 300], [129]])
    check(make_case(layout, "clip", heads=2, kv_heads=1, head_dim=head_dim), "triton", dtype, "cuda")


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 191, 192, 193])
def test_lengths_at_the_edges_of_tiles(length):
    layout = SifLayout.from_lengths([length, 5], [[length, 128], [length]])
    check(make_case(layout, "clip", heads=2, kv_heads=2, head_dim=64), "triton", torch.bfloat16, "cuda")


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_tf32(head_dim, tf32):
    case = make_case(SifLayout.from_lengths([96], [[520, 300]]), "clip", heads=2, kv_heads=1, head_dim=head_dim)
    tf32 = Arithmetic(torch.float32, operand=2.0**-10)  # a mantissa of 10 bits, its rest cut off
    check_results(run(case, "triton", "cuda"), case, tf32)


def test_auto_takes_triton():
    problem = Problem(torch.device("cuda", 0), torch.bfloat16, 64, deterministic=True)
    assert backends.choose("attention", "auto", problem) == "triton"


def test_results_repeat_bit_for_bit():
    leaves = on_gpu(make_case(T128, heads=12, kv_heads=12, head_dim=64))
    first = call(leaves, T128)
    for _ in range(5):
        assert all(torch.equal(x, y) for x, y in zip(first, call(leaves, T128), strict=True))


def test_a_cached_call_never_waits_for_the_device():
    leaves = on_gpu(make_case(T128, heads=4, kv_heads=4, head_dim=64))
    call(leaves, T128)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(leaves, T128)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph_replays_with_new_inputs():
    leaves = on_gpu(make_case(T128, heads=12, kv_heads=12, head_dim=64))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles, and uploads the work lists
        call(leaves, T128)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(leaves, T128)
    with torch.no_grad():
        for x in leaves:
            x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(captured, call(leaves, T128), strict=True))


def test_a_new_layout_under_capture_is_refused():
    layout = SifLayout.from_lengths([17], [[1031]])
    x = torch.randn(layout.total_tokens, 2, 64, device="cuda", dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="run it once before the capture"), torch.cuda.graph(graph):
        sif_attention(x, x, x, layout, backend="triton")


def test_poisoned_neighbours_never_touch_a_clip():
    layout = SifLayout.from_lengths([96, 70, 96], [[1032], [1032, 77], [1032]])
    leaves = on_gpu(make_case(layout, heads=2, kv_heads=2, head_dim=64))
    clean = call(leaves, layout)
    kept = slice(96 + 1032, 96 + 1032 + 70 + 1032 + 77)
    for poison in (float("nan"), float("inf")):
        with torch.no_grad():
            for x in leaves:
                x[: kept.start] = x[kept.stop :] = poison
        assert all(torch.equal(x[kept], y[kept]) for x, y in zip(clean, call(leaves, layout), strict=True))


def test_offsets_beyond_32_bits():
    """The last clip of a batch whose fused projection holds more than 2^31 elements."""
    layout = SifLayout.uniform(batch=32, num_tiv=96, num_frames=29, frame_tokens=1032)
    tokens = layout.total_tokens // 32
    qkv = torch.randn(layout.total_tokens, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    assert qkv.numel() > 2**31
    out = sif_attention(*qkv.unbind(1), layout, backend="triton")
    last = SifLayout.uniform(batch=1, num_tiv=96, num_frames=29, frame_tokens=1032)
    expected = sif_attention(*qkv[-tokens:].clone().unbind(1), last, backend="triton")
    check_same_rows(out[-tokens:], expected, other=out[:tokens])
