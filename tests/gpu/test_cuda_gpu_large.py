"""The CUDA backend at real sizes, and as a citizen of torch: streams, graphs, no waiting."""

import pytest
import torch
from oracle import check, check_same_rows, make_case

from tivtok_kernels import SifLayout, sif_attention

pytestmark = pytest.mark.gpu

T128 = SifLayout.uniform(batch=1, num_tiv=96, num_frames=4, frame_tokens=1032)


def draw(layout, heads=12, head_dim=64):
    return torch.randn(layout.total_tokens, 3, heads, head_dim, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("scope", ["clip", "tiv", "broadcast"])
def test_within_budget(scope, head_dim):
    check(make_case(T128, scope, heads=4, kv_heads=2, head_dim=head_dim), "cuda", torch.bfloat16, "cuda")


def test_results_repeat_bit_for_bit():
    leaves = [x.detach().requires_grad_() for x in draw(T128).unbind(1)]

    def call():
        out, lse = sif_attention(*leaves, T128, backend="cuda", return_lse=True)
        return out, lse, *torch.autograd.grad(out.float().sin().sum() + lse.cos().sum(), leaves)

    first = call()
    for _ in range(5):
        assert all(torch.equal(x, y) for x, y in zip(first, call(), strict=True))


def test_a_cached_call_never_waits_for_the_device():
    qkv = draw(T128)
    sif_attention(*qkv.unbind(1), T128, backend="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        sif_attention(*qkv.unbind(1), T128, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph_replays_with_new_inputs():
    qkv = draw(T128)
    with torch.cuda.stream(torch.cuda.Stream()):  # uploads the work list
        sif_attention(*qkv.unbind(1), T128, backend="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sif_attention(*qkv.unbind(1), T128, backend="cuda")
    qkv.copy_(torch.randn_like(qkv))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, sif_attention(*qkv.unbind(1), T128, backend="cuda"))


def test_work_is_ordered_with_the_current_stream():
    """Inputs written on a side stream just before the call, behind work that takes a while."""
    qkv, stream = draw(T128), torch.cuda.Stream()
    expected = sif_attention(*qkv.unbind(1), T128, backend="cuda")
    late = torch.zeros_like(qkv)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(qkv)
        got = sif_attention(*late.unbind(1), T128, backend="cuda")
    torch.cuda.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_device_that_is_not_current():
    qkv = draw(T128)
    expected = sif_attention(*qkv.unbind(1), T128, backend="cuda")
    got = sif_attention(*qkv.to("cuda:1").unbind(1), T128, backend="cuda")
    assert torch.cuda.current_device() == 0 and torch.equal(got.to("cuda:0"), expected)


def test_offsets_beyond_32_bits():
    """The last clip of a batch whose fused projection holds more than 2^31 elements."""
    layout = SifLayout.uniform(batch=32, num_tiv=96, num_frames=29, frame_tokens=1032)
    qkv = draw(layout)
    assert qkv.numel() > 2**31
    last = SifLayout.uniform(batch=1, num_tiv=96, num_frames=29, frame_tokens=1032)
    out = sif_attention(*qkv.unbind(1), layout, backend="cuda")
    expected = sif_attention(*qkv[-last.total_tokens :].clone().unbind(1), last, backend="cuda")
    check_same_rows(out[-last.total_tokens :], expected, other=out[: last.total_tokens])
