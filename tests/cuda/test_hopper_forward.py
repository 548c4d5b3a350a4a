"""The Hopper forward on the emulator, against the float64 oracle by the error budget."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import cuda_emulator
import pytest
import torch
from cuda_emulator import Kernels
from forward_runs import CPU, ForwardParams, SharesParams, TensorParams, addresses, check, forward, tensor_params
from hopper_forward_faults import FAULTS
from hopper_forward_runs import BLOCK_Q, RowCounts, run_of
from oracle import make_case
from planted_faults import build_with_faults, switch_on

from benchmarks.machine_code import sass
from benchmarks.machine_code.cuda import cuobjdump
from tivtok_kernels import SifLayout
from tivtok_kernels.cuda import shares
from tivtok_kernels.schedule import WorkList, key_work, query_work

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported)),
]

HERE = Path(__file__).parent
DRIVER = HERE / "hopper_forward.cpp"
SCOPES = ("clip", "tiv", "broadcast")
SHIPPED = {64: {"block": 192, "step": 128}, 128: {"block": 192, "step": 64}}  # by head_dim
LIST_STEP = 128  # in tests of the shares alone
RAGGED = SifLayout.from_lengths([3, 0, 37, 2, 0], [[4, 40, 0], [7, 0, 33], [150], [], []])
SMALL = SifLayout.from_lengths([3, 37], [[70], [33, 5]])
LONG = SifLayout.from_lengths([5], [[90, 140]])  # 8 steps under the TIV rows: two pieces


@pytest.fixture(scope="session")
def library():
    return cuda_emulator.build(DRIVER)


@pytest.fixture(scope="session")
def shipped():
    return cuda_emulator.build(HERE / "hopper_forward_shipped.cpp")


@pytest.fixture
def kernels(library):
    return Kernels(library)


def check_clips(kernels: Kernels, seed: int = 0) -> None:
    """One block for all items: everything is used again, and the ring goes round several times."""
    case = make_case(SMALL, heads=2, kv_heads=1, head_dim=64)
    check(kernels, run_of(case, blocks=1), case, torch.bfloat16, seed)


def check_long_items(kernels: Kernels) -> None:
    """Several rounds of the ring in one item."""
    case = make_case(SifLayout.from_lengths([5], [[300]]), "broadcast", heads=1, kv_heads=1, head_dim=64)
    check(kernels, run_of(case, blocks=1), case, torch.bfloat16)


def check_pieces(kernels: Kernels) -> None:
    case = make_case(LONG, heads=2, kv_heads=1, head_dim=64)
    check(kernels, run_of(case, blocks=1, workers=10**6), case, torch.bfloat16)


def check_negative_scale(kernels: Kernels) -> None:
    case = make_case(SMALL, "broadcast", heads=1, kv_heads=1, head_dim=64)
    check(kernels, run_of(case, blocks=1, scale=-0.3), case, torch.bfloat16)


def check_broadcast(kernels: Kernels) -> None:
    """Full tiles of both ranges, from tensors of their own."""
    case = make_case(SifLayout.from_lengths([20, 40], [[50], [70]]), "broadcast", heads=1, kv_heads=1, head_dim=64)
    check(kernels, run_of(case, blocks=1), case, torch.bfloat16)


def check_low_scores(kernels: Kernels) -> None:
    """Scores near -200, where those of the zeros behind the last key would be the largest by far."""
    case = make_case(SMALL, heads=1, kv_heads=1, head_dim=64)
    case.inputs["q"] += 5
    case.inputs["k"] -= 5
    check(kernels, run_of(case), case, torch.bfloat16)


def check_step_1(kernels: Kernels) -> None:
    """Neither range ends with a whole box, and step 0 has room for one of them."""
    case = make_case(SifLayout.from_lengths([3], [[20]]), heads=1, kv_heads=1, head_dim=64)
    check(kernels, run_of(case), case, torch.bfloat16)


def check_neighbours(kernels: Kernels, scope: str = "clip", num_tiv: int = 5, frames: Sequence[int] = (38, 7)) -> None:
    """The middle one of three clips, whose tiles end in its neighbours' rows, while those hold NaN in everything."""
    layout = SifLayout.from_lengths([3, num_tiv, 3], [[20], frames, [20]])
    case = make_case(layout, scope, heads=1, kv_heads=1, head_dim=64).to(torch.bfloat16)
    first = 20 if scope == "broadcast" else 23
    length = sum(frames) + (0 if scope == "broadcast" else num_tiv)
    own = {"tiv": slice(3, 3 + num_tiv), "rows": slice(first, first + length)}

    def poisoned(name: str, x: torch.Tensor) -> torch.Tensor:
        kept = own["tiv" if name.endswith("tiv") else "rows"]
        other = torch.full_like(x, torch.nan)
        other[kept] = x[kept]
        return other

    poisoned_case = replace(case, inputs={name: poisoned(name, x) for name, x in case.inputs.items()})
    expected = forward(kernels, run_of(case), case)
    for got, clean in zip(forward(kernels, run_of(case), poisoned_case), expected, strict=True):
        assert torch.equal(got[own["rows"]], clean[own["rows"]])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("fused", [False, True], ids=["packed", "slices of qkv"])
def test_ragged_clips(kernels, scope, fused):
    case = make_case(RAGGED, scope, heads=1, kv_heads=1, head_dim=64)
    check(kernels, run_of(case, fused=fused), case, torch.bfloat16)


@pytest.mark.smoke
@pytest.mark.parametrize("scope", SCOPES)
def test_grouped_queries(kernels, scope):
    case = make_case(SMALL, scope, heads=4, kv_heads=2, head_dim=64)
    check(kernels, run_of(case), case, torch.bfloat16)


def test_pieces_of_a_last_round(kernels):
    """Three tiles for two blocks, the third in pieces."""
    case = make_case(SifLayout.from_lengths([410], [[70] * 3]), "broadcast", heads=1, kv_heads=1, head_dim=64)
    run = run_of(case, blocks=2, workers=2, fill=True)
    assert query_work(case.layout, case.scope, run.block, run.step, 1, 2, CPU, run.fill).num_merges == 1
    check(kernels, run, case, torch.bfloat16)


@pytest.mark.parametrize("seed", range(12))
def test_random_clips(kernels, seed):
    draw = random.Random(seed)
    num_tiv = [draw.choice([0, 3, 16, 20, 32, 45, 64, 90]) for _ in range(draw.randint(1, 3))]
    frames = [[draw.choice([0, 1, 5, 16, 31, 32, 33, 70, 129]) for _ in range(draw.randint(1, 4))] for _ in num_tiv]
    layout = SifLayout.from_lengths([*num_tiv, 3], [*frames, [9]])
    heads, kv_heads = draw.choice([(1, 1), (2, 1), (2, 2)])
    case = make_case(layout, draw.choice(SCOPES), heads=heads, kv_heads=kv_heads, head_dim=64, seed=seed)
    run = run_of(case, blocks=draw.choice([1, 2, 5]), workers=draw.choice([1, 10**6]))
    check(kernels, run, case, torch.bfloat16, seed)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128])
def test_lengths_at_the_edges_of_tiles(kernels, length):
    layout = SifLayout.from_lengths([length], [[length, 32]])
    case = make_case(layout, heads=1, kv_heads=1, head_dim=64)
    check(kernels, run_of(case), case, torch.bfloat16)


CASES = {
    "clips": check_clips,
    "long items": check_long_items,
    "pieces": check_pieces,
    "negative scale": check_negative_scale,
    "broadcast": check_broadcast,
    "low scores": check_low_scores,
    "step 1": check_step_1,
    "neighbours": check_neighbours,
    "whole neighbours": partial(check_neighbours, num_tiv=0, frames=[16]),
}


@pytest.fixture(scope="session")
def faulty(tmp_path_factory):
    return build_with_faults(DRIVER, [fault.mutation for fault in FAULTS], tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("case", CASES)
def test_without_faults(faulty, case):
    CASES[case](Kernels(faulty))


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=lambda i: FAULTS[i - 1].mutation.name)
def test_planted_faults_are_caught(faulty, number):
    kernels = Kernels(faulty)
    switch_on(kernels, number)
    try:
        with pytest.raises(AssertionError):
            CASES[FAULTS[number - 1].case](kernels)
    finally:
        switch_on(kernels, 0)


@pytest.mark.parametrize("seed", range(1, 5))
def test_any_order_of_threads_and_copies(kernels, seed):
    check_clips(kernels, seed)


@pytest.mark.parametrize("num_tiv, frames", [(5, [38, 7]), (0, [16, 49]), (16, [64])], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_neighbours_never_touch_a_clip(kernels, scope, num_tiv, frames):
    check_neighbours(kernels, scope, num_tiv, frames)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_scales(kernels, scale):
    case = make_case(SMALL, heads=1, kv_heads=1, head_dim=64)
    check(kernels, run_of(case, scale=scale), case, torch.bfloat16)


def test_rows_without_keys(kernels):
    """No schedule makes such a tile: its rows are 0 with an LSE of -inf, and the tile after it is not disturbed."""
    case = make_case(SifLayout.from_lengths([70], [[]]), heads=1, kv_heads=1, head_dim=64).to(torch.bfloat16)
    q, k, v = (kernels.tensor(case.inputs[name], name) for name in "qkv")
    out, lse = kernels.empty(q.shape, q.dtype, "out"), kernels.empty(q.shape[:2], torch.float32, "lse")
    tiles = torch.tensor([[0, 70, 0, 0, 9, 9, -1, 0], [0, 70, 0, 70, 0, 0, -1, 0]], dtype=torch.int32)
    tiles = kernels.tensor(tiles, "tiles")
    order, bounds = (kernels.tensor(torch.tensor(x, dtype=torch.int32), "shares") for x in ([0, 1], [0, 1]))
    strided = {"q": q, "k": k, "v": v, "k_tiv": k, "v_tiv": v}
    params = ForwardParams(
        **{name: tensor_params(x) for name, x in strided.items()},
        **addresses(out=out, lse=lse, part_out=None, part_lse=None, tiles=tiles),
        num_tiles=2,
        heads=1,
        group=1,
        head_dim=64,
        scale=0.125,
    )
    for last, empty in ((1, True), (2, False)):
        bounds[1] = last
        share = SharesParams(**addresses(order=order, bounds=bounds), blocks=1)
        kernels.call("forward", params, RowCounts(q=70, k=70, tiv=70), share, True)
        assert bool((out == 0).all() and (lse == -torch.inf).all()) == empty
    assert lse.isfinite().all()


@pytest.mark.parametrize("seed, scope", [(0, "clip"), (1, "broadcast"), (2, "clip")])
@pytest.mark.parametrize("head_dim, dtype", [(64, torch.float16), (128, torch.bfloat16)], ids=str)
def test_configurations_that_ship(shipped, head_dim, dtype, seed, scope):
    """Three warpgroups, of which all, two or one have rows; ends of ranges in one step, and in two."""
    layout = SifLayout.from_lengths([96, 9], [[150], [131, 193]])
    case = make_case(layout, scope, heads=1, kv_heads=1, head_dim=head_dim)
    check(Kernels(shipped), run_of(case, **SHIPPED[head_dim]), case, dtype, seed)


def instantiation(element: str, head_dim: int) -> str:
    return (
        '#include "forward/hopper/kernel.h"\n'
        f"template __global__ void hopper::forward<hopper::ForwardConfigOf<dev::{element}, {head_dim}>>"
        "(const __grid_constant__ hopper::KernelParams);\n"
    )


@pytest.mark.skipif(cuda_emulator.nvcc is None, reason="needs nvcc, for the PTX of the kernel")
@pytest.mark.parametrize("head_dim, dtype", [(64, torch.bfloat16), (128, torch.float16)], ids=str)
def test_ptx_of_the_configurations_that_ship(shipped, head_dim, dtype):
    element = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    ptx = cuda_emulator.build_ptx(instantiation(element, head_dim), "sm_90a")
    case = make_case(SifLayout.from_lengths([9], [[150]]), heads=2, kv_heads=1, head_dim=head_dim)
    check(Kernels(shipped, ptx), run_of(case, **SHIPPED[head_dim], blocks=1, scale=-0.3), case, dtype)


@pytest.mark.skipif(cuda_emulator.nvcc is None, reason="needs nvcc, for the machine code of the kernel")
@pytest.mark.parametrize("head_dim", SHIPPED)
def test_exponentials_run_beside_the_output_product(tmp_path, head_dim):
    """Between the wait for the scores and that for the output: ptxas is free to move the second one up."""
    source, binary = tmp_path / "kernel.cu", tmp_path / "kernel.cubin"
    source.write_text(instantiation("bf16", head_dim))
    gencode = "-gencode=arch=compute_90a,code=sm_90a"
    cuda_emulator.run_tool(
        [cuda_emulator.nvcc, "-std=c++20", "-O3", gencode, f"-I{cuda_emulator.CSRC}", "-cubin", "-o", binary, source]
    )
    loop = sass.main_loop(sass.parse(cuda_emulator.run_tool([cuobjdump(), "-sass", binary])))
    waits = [i for i, instruction in enumerate(loop) if instruction.opcode.startswith("WARPGROUP.DEPBAR")]
    between = sass.count(loop[waits[0] : waits[-1]])
    assert len(waits) == 2 and between.ex2 >= SHIPPED[head_dim]["step"] * 64 // 128  # of 64 rows, by 128 threads


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, ""),
        ({"data": 8}, "tensor map of k: data must be aligned to 16 bytes"),
        ({"row": 100}, "tensor map of k: row stride must be a positive multiple of 8 elements below 2^39, got 100"),
        ({"head": 0}, "tensor map of k: head stride must be a positive multiple of 8 elements below 2^39, got 0"),
        ({"rows": 0}, "tensor map of k: expected rows and heads >= 1, got 0 and 2"),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_what_tma_cannot_read(kernels, changes, message):
    fine = {"data": 4096, "row": 128, "head": 64}
    x, k = TensorParams(**fine), TensorParams(**fine | {n: changes[n] for n in fine if n in changes})
    params = ForwardParams(
        q=x,
        k=k,
        v=x,
        k_tiv=x,
        v_tiv=x,
        **addresses(out=None, lse=None, part_out=None, part_lse=None, tiles=None),
        num_tiles=0,
        heads=2,
        group=1,
        head_dim=64,
        scale=1,
    )
    counts = RowCounts(q=9, k=changes.get("rows", 9), tiv=9)
    share = SharesParams(**addresses(order=None, bounds=None), blocks=0)
    text = ctypes.create_string_buffer(200)
    kernels.call("complaint", params, counts, share, text)
    assert text.value.decode() == message


def work_of(layout: SifLayout, scope: str) -> WorkList:
    return query_work(layout, scope, BLOCK_Q, LIST_STEP, 2, 1, CPU)


def items_of(share: shares.Shares) -> list[list[int]]:
    order, bounds = share.order.tolist(), share.bounds.tolist()
    return [order[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("blocks", [1, 3, 100])
def test_every_item_has_one_block(blocks):
    work = work_of(SifLayout.uniform(2, 96, 3, 500), "broadcast")
    items = items_of(shares.by_length([shares.Items(work, 4, LIST_STEP)], blocks, CPU))
    assert len(items) == min(blocks, work.num_tiles * 4)
    assert sorted(chain.from_iterable(items)) == list(range(work.num_tiles * 4))


def test_items_of_a_backward_are_shared_out_together():
    """No block has more than an item above another, in products; both kinds are on most."""
    layout, heads, walked = SifLayout.uniform(2, 96, 3, 500), 4, (LIST_STEP, 64)
    queries, keys = (
        make(layout, "clip", BLOCK_Q, step, heads, 13, CPU)
        for make, step in zip((query_work, key_work), walked, strict=True)
    )
    both = shares.gradient_items(queries, keys, heads, 2, walked)
    costs = [cost for part in both for cost in part.costs().tolist()]
    assert len(costs) == queries.num_tiles * heads + keys.num_tiles * heads // 2
    items = items_of(shares.by_length(both, 13, CPU))
    assert sorted(chain.from_iterable(items)) == list(range(len(costs)))
    loads = [sum(costs[i] for i in own) for own in items]
    assert max(loads) - min(loads) <= max(costs)
    assert all([costs[i] for i in own] == sorted((costs[i] for i in own), reverse=True) for own in items)
    assert sum({i < queries.num_tiles * heads for i in own} == {False, True} for own in items) > 6


def test_long_items_leave_their_blocks_little_else():
    """12 items of 33 steps (the TIV rows) and 432 of 9, on 132 blocks: 32.5 each on average."""
    work = query_work(SifLayout.uniform(1, 96, 4, 1032), "clip", BLOCK_Q, LIST_STEP, 12, 132, CPU)
    items = items_of(shares.by_length([shares.Items(work, 12, LIST_STEP)], 132, CPU))
    loads = [sum(33 if item < 12 else 9 for item in own) for own in items]
    assert sum(loads) == 12 * 33 + 432 * 9 and max(loads) == 36
