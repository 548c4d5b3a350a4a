"""The Ampere forward and the merge kernels on the emulator, against the float64 oracle by the error budget."""

import random
from pathlib import Path

import cuda_emulator
import numpy as np
import pytest
import torch
from cuda_emulator import Kernels, Mutation
from forward_runs import CPU, Run, SumGradientsParams, addresses, check, forward
from oracle import make_case

from tivtok_kernels import SifLayout
from tivtok_kernels.schedule import query_work

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported)),
]

DRIVER = Path(__file__).with_name("ampere_forward.cpp")
SHIPPED = Path(__file__).with_name("ampere_forward_shipped.cpp")
SCOPES = ("clip", "tiv", "broadcast")
RAGGED = SifLayout.from_lengths([3, 0, 37, 2, 0], [[4, 40, 0], [7, 0, 33], [65], [], []])
LONG = SifLayout.from_lengths([5], [[96, 130, 20]])  # 8 steps of 32 keys under the TIV rows: two pieces


@pytest.fixture(scope="session")
def library():
    return cuda_emulator.build(DRIVER)


@pytest.fixture
def kernels(library):
    return Kernels(library)


def launch(kernels, params, work, is_bf16, seed):
    kernels.call("forward", params, is_bf16, seed=seed)


def small(**options) -> Run:
    return Run(launch, 32, 32, **options)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("fused", [False, True], ids=["packed", "slices of qkv"])
def test_ragged_clips(kernels, scope, fused):
    check(kernels, small(fused=fused), make_case(RAGGED, scope, head_dim=32), torch.bfloat16)


@pytest.mark.smoke
@pytest.mark.parametrize("scope", SCOPES)
def test_grouped_queries(kernels, scope):
    check(kernels, small(), make_case(RAGGED, scope, heads=4, kv_heads=2, head_dim=24), torch.float16)


@pytest.mark.parametrize("seed", range(5))
def test_random_layouts(kernels, seed):
    draw = random.Random(seed)
    clips = [(draw.randint(0, 40), [draw.randint(0, 50) for _ in range(draw.randint(0, 3))]) for _ in range(2)]
    layout = SifLayout.from_lengths(*zip(*[(5, [33]), *clips], strict=True))
    group = draw.choice([1, 2])
    case = make_case(
        layout, draw.choice(SCOPES), heads=2 * group, kv_heads=2, head_dim=draw.choice([8, 24, 32]), seed=seed
    )
    run = small(workers=draw.choice([1, 10**6]), fused=draw.random() < 0.5)
    check(kernels, run, case, draw.choice([torch.bfloat16, torch.float16]), seed)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64, 65])
def test_lengths_at_the_edges_of_tiles(kernels, length):
    layout = SifLayout.from_lengths([length, 5], [[length, 32], [length]])
    check(kernels, small(), make_case(layout, heads=1, kv_heads=1, head_dim=16), torch.bfloat16)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scope", SCOPES)
def test_split_tiles(kernels, scope, seed):
    check(kernels, small(workers=10**6), make_case(LONG, scope, kv_heads=1, head_dim=32), torch.bfloat16, seed)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_scales(kernels, scale):
    check(kernels, small(scale=scale, workers=10**6), make_case(LONG, heads=1, kv_heads=1, head_dim=32), torch.float16)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_poisoned_neighbours_never_touch_a_clip(kernels, scope, poison):
    layout = SifLayout.from_lengths([9, 5, 9], [[40], [33, 40], [7]])
    case = make_case(layout, scope, heads=1, kv_heads=1, head_dim=32).to(torch.bfloat16)
    clean = forward(kernels, small(), case)
    kept = {name: torch.zeros(len(x), dtype=torch.bool) for name, x in case.inputs.items()}
    for name, rows in kept.items():
        first = 9 if name.endswith("_tiv") else 40 if scope == "broadcast" else 49
        rows[first : first + (5 if name.endswith("_tiv") else 73 if scope == "broadcast" else 78)] = True
        case.inputs[name][~rows] = poison
    for x, y in zip(clean, forward(kernels, small(), case), strict=True):
        assert torch.equal(x[kept["q"]], y[kept["q"]])


@pytest.mark.parametrize("scope", ["tiv", "broadcast"])
def test_poisoned_frames_never_touch_another_frame(kernels, scope):
    case = make_case(SifLayout.from_lengths([3], [[40, 38, 40]]), scope, heads=1, kv_heads=1, head_dim=32)
    case = case.to(torch.bfloat16)
    clean = forward(kernels, small(), case)
    first = 40 if scope == "broadcast" else 43
    kept = torch.zeros(len(case.inputs["q"]), dtype=torch.bool)
    kept[first : first + 38] = True
    others = ~kept & (torch.arange(len(kept)) >= first - 40)
    for name in "qkv":
        case.inputs[name][others] = float("nan")
    for x, y in zip(clean, forward(kernels, small(), case), strict=True):
        assert torch.equal(x[kept], y[kept])


def test_matrix_loads_have_no_bank_conflicts(kernels):
    forward(kernels, small(), make_case(LONG, head_dim=32).to(torch.bfloat16))
    assert kernels.counters.ldmatrix_wavefronts == kernels.counters.ldmatrix_ideal > 0


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(32, torch.float16), (48, torch.bfloat16), (64, torch.bfloat16), (80, torch.float16), (128, torch.bfloat16)],
    ids=str,
)
def test_shipped_tiles(head_dim, dtype):
    """Several steps and a tail; a full tile of queries and part of one."""
    kernels = Kernels(cuda_emulator.build(SHIPPED))
    tile = np.zeros(2, np.int32)
    kernels.library.forward_tile(head_dim, tile.ctypes.data_as(cuda_emulator.ctypes.c_void_p))
    case = make_case(SifLayout.from_lengths([9], [[140, 77]]), heads=1, kv_heads=1, head_dim=head_dim)
    check(kernels, Run(launch, *tile.tolist()), case, dtype)
    assert kernels.counters.ldmatrix_wavefronts == kernels.counters.ldmatrix_ideal


@pytest.mark.skipif(cuda_emulator.nvcc is None, reason="needs nvcc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_ptx_of_nvcc(library, dtype):
    """What nvcc makes of the same source, its inline PTX included."""
    element = "dev::bf16" if dtype == torch.bfloat16 else "dev::fp16"
    config = f"ampere::ForwardConfig<{element}, 32, 1, 32, 3, 1, 2>"
    source = f"""
    #include "forward/ampere/kernel.h"
    #include "merge/kernel.h"
    template __global__ void ampere::forward<{config}>(const __grid_constant__ ForwardParams);
    template __global__ void merge::outputs<{element}>(const __grid_constant__ MergeOutputsParams);
    """
    kernels = Kernels(library, cuda_emulator.build_ptx(source, "sm_80"))
    case = make_case(LONG, heads=2, kv_heads=1, head_dim=32)
    for seed, scale in enumerate((None, -0.3)):
        check(kernels, small(workers=10**6, scale=scale), case, dtype, seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sum_of_gradients(kernels, dtype):
    """Pieces in the order of the list, into the tensor that each merge names."""
    heads, block, head_dim = 3, 32, 24
    work = query_work(LONG, "clip", block, 32, heads, 10**6, CPU)
    merges = work.merges.repeat(2, 1)
    merges[len(work.merges) :, 4] = 1  # the same once more, into the other tensor
    part = torch.randn(work.num_slots, heads, block, head_dim, generator=torch.Generator().manual_seed(0))
    grads = [kernels.empty((LONG.total_tokens, heads, head_dim), dtype, name) for name in ("grad", "grad_tiv")]
    device_part, device_merges = kernels.tensor(part, "part"), kernels.tensor(merges, "merges")
    params = SumGradientsParams(
        **addresses(part=device_part, grad=grads[0], grad_tiv=grads[1], merges=device_merges),
        num_merges=len(merges),
        heads=heads,
        block=block,
        head_dim=head_dim,
    )
    kernels.call("sum_gradients", params, dtype == torch.bfloat16)

    expected, rows = torch.zeros(grads[0].shape), torch.zeros(LONG.total_tokens, dtype=torch.bool)
    for row, row_end, slot, slots, *_ in work.merges.tolist():
        for i in range(slots):
            expected[row:row_end] += part[slot + i, :, : row_end - row].transpose(0, 1)
        rows[row:row_end] = True
    assert rows.any() and not rows.all()
    for grad in grads:
        assert torch.equal(kernels.written(grad).all(-1).all(-1), rows)
        assert torch.equal(grad[rows], expected[rows].to(dtype))


KERNEL, MERGE = "forward/ampere/kernel.h", "merge/kernel.h"

MUTATIONS = [
    Mutation("no barrier before a tile is read", KERNEL, "2>();\n        __syncthreads();", "2>();"),
    Mutation("no barrier between copying and reading Q", KERNEL, "(q_bytes);\n    __syncthreads();", "(q_bytes);"),
    Mutation("waits for one tile too few", KERNEL, "cp_async_wait<C::kRing - 2>", "cp_async_wait<C::kRing - 1>"),
    Mutation("does not wait for Q", KERNEL, "dev::cp_async_wait<C::kRing - 1>();\n", ""),
    Mutation("copies over the tile in use", KERNEL, "slot == 0 ? C::kRing - 1 : slot - 1", "slot"),
    Mutation("the last step is not copied", KERNEL, "if (first < count)", "if (first + C::kBlockK <= count)"),
    Mutation("places of rows read before they are there", KERNEL, "__syncthreads();\n    const int", "const int"),
    Mutation("one key too many is unmasked", KERNEL, "% 2 >= keys", "% 2 > keys"),
    Mutation(
        "the row past the range is copied", KERNEL, "bytes_a : bytes_b), i < count", "bytes_a : bytes_b), i <= count"
    ),
    Mutation("range A is one row too long", KERNEL, "of_a = i < a_length", "of_a = i <= a_length"),
    Mutation("range B starts where A does", KERNEL, "static_cast<int64_t>(tile.b) - (tile.a_end - tile.a)", "tile.b"),
    Mutation("grouped queries ignored", KERNEL, "i_kh = i_h / p.group", "i_kh = i_h"),
    Mutation("rows without padding", "forward/ampere/config.h", "kPitch = 2 * kHeadDim + 16", "kPitch = 2 * kHeadDim"),
    Mutation("halves of Q swapped", KERNEL, "k * 2 + lane / 16));", "k * 2 + 1 - lane / 16));"),
    Mutation("V not transposed", KERNEL, "ldmatrix_x4_trans", "ldmatrix_x4"),
    Mutation("maximum of half a row", KERNEL, "top = fmaxf(top, dev::shfl_xor(top, 2));", ""),
    Mutation("sum of half a row", KERNEL, "total += dev::shfl_xor(total, 2);", ""),
    Mutation("results do not decay", KERNEL, "out[m][n][2 * h + 1] *= decay;", ""),
    Mutation("sign of the scale ignored", KERNEL, "if (p.scale < 0)", "if (false)"),
    Mutation("a scale of 0", KERNEL, "fmaxf(fabsf(p.scale) * dev::kLog2E, FLT_MIN)", "fabsf(p.scale) * dev::kLog2E"),
    Mutation("natural and binary logarithms mixed", KERNEL, "lse[m][h] * dev::kLn2", "lse[m][h]"),
    Mutation("rows past the tile are written", KERNEL, "i_row < tile.row_end && c * 8", "c * 8"),
    Mutation("no warp barrier between turning and storing", KERNEL, "__syncwarp();\n    constexpr", "constexpr"),
    Mutation(
        "warps with few rows idle", KERNEL, "32 * C::kWarpRows < tile.row_end", "32 * C::kWarpRows + 9 < tile.row_end"
    ),
    Mutation("all heads in one slot", KERNEL, "(static_cast<int64_t>(slot) * p.heads + i_h)", "(slot * p.heads)"),
    Mutation("the last piece is left out", MERGE, "total += weight;", "if (piece + 1 < entry.slots) total += weight;"),
]


def probe(kernels):
    """A short call of everything the mutations touch."""
    layout = SifLayout.from_lengths([5, 2], [[96, 130, 20], [31]])
    for scope, scale in (("clip", -0.3), ("broadcast", 0.0)):
        case = make_case(layout, scope, heads=2, kv_heads=1, head_dim=32)
        check(kernels, small(workers=10**6, scale=scale), case, torch.float16)
        assert kernels.counters.ldmatrix_wavefronts == kernels.counters.ldmatrix_ideal
    test_poisoned_frames_never_touch_another_frame(kernels, "tiv")


def test_the_probe_passes_without_a_fault(kernels):
    probe(kernels)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutations_are_caught(mutation, tmp_path):
    kernels = Kernels(cuda_emulator.mutant(DRIVER, mutation, tmp_path))
    with pytest.raises(AssertionError):
        probe(kernels)
