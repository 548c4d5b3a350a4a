"""The CUDA kernels against the oracle, at sizes that compute-sanitizer gets through; `make gpu` runs these under it."""

import pytest
import torch
from oracle import check, make_case

from tivtok_kernels import SifLayout, sif_attention

pytestmark = pytest.mark.gpu

SCOPES = ("clip", "tiv", "broadcast")
DTYPES = (torch.bfloat16, torch.float16)
RAGGED = SifLayout.from_lengths([96, 0, 130, 5, 0], [[264, 0, 77], [7, 0, 130], [300], [], []])


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """torch then fills what `torch.empty` returns: no result may depend on it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["ampere", "hopper"])
def engine(request, monkeypatch):
    """Each set of kernels that this GPU can run, whichever it would be given."""
    from tivtok_kernels.cuda import configs, launch, launch_backward

    if request.param == "hopper" and configs.capability(torch.device("cuda", 0)) != (9, 0):
        pytest.skip("needs compute capability 9.0")
    monkeypatch.setattr(configs, "engine", lambda *_, **__: request.param)
    plans = (launch._forward_plan, launch_backward._backward_plan)
    for cache in plans:
        cache.cache_clear()
    yield request.param
    for cache in plans:
        cache.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_within_budget(engine, scope, dtype):
    check(make_case(RAGGED, scope, heads=4, kv_heads=2, head_dim=64), "cuda", dtype, "cuda")


@pytest.mark.parametrize("scope", SCOPES)
def test_head_dim_128(engine, scope):
    check(make_case(RAGGED, scope, heads=2, kv_heads=1, head_dim=128), "cuda", torch.bfloat16, "cuda")


@pytest.mark.parametrize("head_dim", [8, 24, 32, 48, 80, 96, 120])
def test_other_head_dims(head_dim):
    check(make_case(RAGGED, "clip", heads=2, kv_heads=1, head_dim=head_dim), "cuda", torch.bfloat16, "cuda")


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129])
def test_lengths_at_the_edges_of_tiles(engine, length):
    layout = SifLayout.from_lengths([length, 5], [[length, 128], [length]])
    check(make_case(layout, "clip", heads=2, kv_heads=2, head_dim=64), "cuda", torch.bfloat16, "cuda")


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales(engine, scale):
    check(make_case(RAGGED, heads=2, kv_heads=2, head_dim=64, scale=scale), "cuda", torch.float16, "cuda")


def test_poisoned_neighbours_never_touch_a_clip(engine):
    layout = SifLayout.from_lengths([96, 70, 96], [[132], [132, 77], [132]])
    qkv = torch.randn(layout.total_tokens, 3, 2, 64, device="cuda", dtype=torch.bfloat16)
    clean = sif_attention(*qkv.unbind(1), layout, backend="cuda")
    kept = slice(96 + 132, 96 + 132 + 70 + 132 + 77)
    for poison in (float("nan"), float("inf")):
        qkv[: kept.start] = qkv[kept.stop :] = poison
        assert torch.equal(sif_attention(*qkv.unbind(1), layout, backend="cuda")[kept], clean[kept])
