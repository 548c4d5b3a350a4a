"""batch_invariant=True: the bits of a clip alone are its bits inside any batch, gradients included."""

from __future__ import annotations

import pytest
import torch
from oracle import check_results, make_case
from torch import Tensor

from tivtok_kernels import (
    RangeLayout,
    SifLayout,
    backends,
    broadcast_attention,
    plan_attention,
    range_attention,
    schedule,
    sif_attention,
)
from tivtok_kernels.backends import BackendUnavailable
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.problem import Problem
from tivtok_kernels.triton import configs, launch

CPU = torch.device("cpu")
# TIV tokens and frames of each clip: long rows, short ones, empty ones.
CLIPS = [(5, [100]), (0, [17]), (3, []), (20, [70, 0])]


def available(backend: str) -> object:
    reason = backends.why_not(backend, Problem(CPU, torch.float32, 16, batch_invariant=True))
    return pytest.param(backend, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


HEADS = {"triton": 1, "cpu": 2}  # the interpreter is slow
BACKENDS = [available("triton"), available("cpu")]


@pytest.fixture
def large_gpu(monkeypatch):
    """Triton cuts by the batch as it would for a GPU that runs six programs at a time, and short tiles, too."""
    monkeypatch.setattr(configs, "workers", lambda *_: 6)
    monkeypatch.setattr(schedule, "MIN_STEPS_TO_SPLIT", 2)
    monkeypatch.setattr(schedule, "INVARIANT_STEPS", 1)
    clear()
    yield
    clear()


def clear() -> None:
    for cached in (schedule.query_work, schedule.key_work, launch._cached_plan):
        cached.cache_clear()


def results(clips: list[int], scope: str, backend: str, *, invariant: bool = True) -> list[dict[str, Tensor]]:
    """Of each clip in a batch of these, numbers of `CLIPS`: out, LSE and gradients, from inputs of the clip's own."""
    cases = [
        make_case(SifLayout.from_lengths([tiv], [frames]), scope, heads=HEADS[backend], kv_heads=1, seed=i)
        for i, (tiv, frames) in ((i, CLIPS[i]) for i in clips)
    ]
    layout = SifLayout.from_lengths([CLIPS[i][0] for i in clips], [CLIPS[i][1] for i in clips])
    leaves = {n: torch.cat([case.inputs[n] for case in cases]).requires_grad_() for n in cases[0].inputs}
    options = {"layout": layout, "backend": backend, "return_lse": True, "batch_invariant": invariant}
    if scope == "broadcast":
        out, lse = broadcast_attention(**leaves, **options)
    else:
        out, lse = sif_attention(**leaves, **options, tiv_scope=scope)
    douts, dlses = (torch.cat([getattr(case, name) for case in cases]) for name in ("dout", "dlse"))
    grads = torch.autograd.grad([out, lse], list(leaves.values()), [douts, dlses])
    found: list[dict[str, Tensor]] = [{} for _ in clips]
    for name, x in {"out": out, "lse": lse, **dict(zip(leaves, grads, strict=True))}.items():
        rows = [len(case.inputs[name if name in leaves else "q"]) for case in cases]
        for of_clip, part in zip(found, x.detach().split(rows), strict=True):
            of_clip[name] = part
    return found


@pytest.mark.parametrize("scope", ["clip", "broadcast"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_has_the_same_bits_in_any_batch(large_gpu, backend, scope):
    if backend == "triton":
        batches, compared = [[3, 1, 0, 2]], [0, 3]
    else:
        batches, compared = [[0, 1, 2, 3], [3, 2], [0, 0, 3, 0]], [0, 1, 2, 3]
    alone = {i: results([i], scope, backend)[0] for i in compared}
    for clips in batches:
        for i, found in zip(clips, results(clips, scope, backend), strict=True):
            for name, x in found.items() if i in alone else ():
                assert torch.equal(x, alone[i][name]), f"{name} of clip {i} in the batch {clips}"


def test_triton_is_not_batch_invariant_unless_it_is_asked_to_be(large_gpu):
    """So the test above can fail."""
    alone = results([0], "clip", "triton", invariant=False)[0]
    batch = results([0, 1, 2, 3], "clip", "triton", invariant=False)[0]
    assert any(not torch.equal(x, batch[name]) for name, x in alone.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_within_the_budget(large_gpu, backend):
    case = make_case(SifLayout.from_lengths(*zip(*CLIPS, strict=True)), heads=1, kv_heads=1)
    q, k, v = case.inputs.values()
    out, lse = sif_attention(q, k, v, case.layout, backend=backend, return_lse=True, batch_invariant=True)
    check_results({"out": out, "lse": lse}, case, Arithmetic(torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_of_ranges_have_the_same_bits_in_any_batch(large_gpu, backend):
    lengths = [70, 3, 100]
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randn(3, n, 2, 16, generator=draw) for n in lengths]

    def attend(parts: list[Tensor]) -> Tensor:
        layout = RangeLayout.documents([x.shape[1] for x in parts])
        return range_attention(*torch.cat(parts, 1), layout, backend=backend, batch_invariant=True)

    together = attend(documents).split(lengths)
    assert all(torch.equal(attend([x]), part) for x, part in zip(documents, together, strict=True))


def test_pieces_depend_on_the_tile_alone():
    def pieces(layout: SifLayout) -> list[tuple[int, ...]]:
        work = schedule.query_work(layout, "clip", 64, 64, 12, None, CPU)
        first = [tile for tile in work.tiles.tolist() if tile[1] <= 128]  # of the first clip
        return sorted((row, end, a_end - a, b_end - b) for row, end, a, a_end, b, b_end, _, _ in first)

    alone = SifLayout.from_lengths([128], [[1032] * 4])
    assert pieces(alone) == pieces(SifLayout.from_lengths([128] * 3, [[1032] * 4, [7], [3000] * 9]))
    steps = -(-(128 + 4 * 1032) // 64)
    assert len(pieces(alone)) == 2 * -(-steps // schedule.INVARIANT_STEPS)


@pytest.mark.parametrize("backend", ["sdpa", "reference", "flex", "cuda"])
def test_other_backends_refuse(backend):
    case = make_case(SifLayout.from_lengths([2], [[3]]))
    with pytest.raises(BackendUnavailable, match=r"batch-invariant|NVIDIA"):
        sif_attention(*case.inputs.values(), case.layout, backend=backend, batch_invariant=True)


def test_plans_are_those_of_the_calls(large_gpu):
    layout = SifLayout.from_lengths([5], [[150, 40]])
    options = {"backend": "triton", "batch_invariant": True}
    plan_attention(layout, heads=1, head_dim=16, kv_heads=1, **options)
    before = launch._cached_plan.cache_info().misses
    q, k, v = make_case(layout, heads=1, kv_heads=1).inputs.values()
    sif_attention(q.requires_grad_(), k, v, layout, **options).sum().backward()
    assert launch._cached_plan.cache_info().misses == before == 3
