"""Kernels that are not ours and known to work, on the emulator: what tests its reading of the ISA, not our kernels.

The Triton templates that torch's compiler ships are translated for sm_90 and held against float64: matrix products
whose operands come by cp.async or TMA (by tensor maps that the kernel writes), in every swizzle, major order and 16-bit
type, the same by specialised warps, and FlexAttention under the arrowhead mask. test_cute_kernels.py has those of CuTe.
"""

from __future__ import annotations

import math
import re

import cuda_emulator
import pytest
import torch
import torch_templates
from oracle import check_results, make_case
from products import check_product
from torch.nn.attention.flex_attention import create_block_mask
from torch_templates import FLEX, MATMUL, MATMUL_BY_SPECIALISED_WARPS, MATMUL_BY_TMA, Filled, Operand

from benchmarks.machine_code.compile import outside_the_interpreter
from tivtok_kernels import SifLayout
from tivtok_kernels.error_budgets import Arithmetic

# What 3.6 writes lacks a fence between cp.async and wgmma, and a barrier of the warp before it publishes a tensor map.
pytest.importorskip("triton", "3.9", reason="the PTX of older versions of triton is not quite what the ISA asks for")
pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported)),
]

BLOCKS = 2  # of the persistent kernels, each with several tiles


def matmul(
    template: str,
    dtype: str,
    tile: tuple[int, int, int],
    majors: str = "kn",
    shape: tuple[int, int, int] = (192, 128, 192),
    warps: int = 4,
    stores_by_tma: bool = False,
    **constants: object,
) -> Filled:
    """OUT (M, N) = A (M, K) B (K, N). majors: along which dimension A and B are contiguous. shape: M, N, K."""
    m, n, k = shape
    a_is_k, b_is_n = majors[0] == "k", majors[1] == "n"
    operands = {
        "A": Operand((m, k), (k, 1) if a_is_k else (1, m), dtype),
        "B": Operand((k, n), (n, 1) if b_is_n else (1, k), dtype),
        "OUT": Operand((m, n), (n, 1), dtype),
    }
    named = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile, strict=True), GROUP_M=8, NUM_SMS=BLOCKS)
    named |= {"EVEN_K": k % tile[2] == 0, "USE_FAST_ACCUM": True, "A_ROW_MAJOR": a_is_k, "B_ROW_MAJOR": b_is_n}
    return Filled(template, operands, named | constants, warps, stores_by_tma=stores_by_tma)


SPECIALISED = {"WARP_SPECIALIZE": True, "FLATTEN": False, "EPILOGUE_SUBTILE": 1}
MATMULS = {
    "cp.async": matmul(MATMUL, "bf16", (64, 64, 64)),
    "cp.async, both of the other major, edges": matmul(MATMUL, "fp16", (64, 32, 32), "mk", (104, 72, 120)),
    "TMA": matmul(MATMUL_BY_TMA, "bf16", (64, 64, 64), stores_by_tma=True),
    "TMA, edges": matmul(MATMUL_BY_TMA, "fp16", (64, 64, 64), "kk", (104, 72, 120), stores_by_tma=True),
    "TMA, both of the other major": matmul(MATMUL_BY_TMA, "bf16", (64, 128, 64), "mk"),
    "TMA, lines of 64 bytes": matmul(MATMUL_BY_TMA, "fp16", (128, 32, 32), "kn"),
    "TMA, lines of 32 bytes": matmul(MATMUL_BY_TMA, "bf16", (64, 16, 16), "kn", (64, 32, 64)),
    "TMA, columns of 16 bytes": matmul(MATMUL_BY_TMA, "fp16", (64, 8, 64), "kn", (64, 16, 128)),
    "TMA, several boxes to an operand": matmul(MATMUL_BY_TMA, "bf16", (128, 256, 32), "mn", (256, 256, 96), warps=8),
    "specialised warps": matmul(MATMUL_BY_SPECIALISED_WARPS, "fp16", (128, 64, 64), **SPECIALISED),
}


class Flex:
    """The template under the mask of one clip: a case of ours, and what the template gets of it."""

    def __init__(self, dtype: torch.dtype, head_dim: int, block: tuple[int, int], *, by_tma: bool, warps: int = 4):
        tiv, frame, frames, heads, kv_heads = 32, 80, 2, 2, 1
        layout = SifLayout.from_lengths([tiv], [[frame] * frames])
        self.case = make_case(layout, heads=heads, kv_heads=kv_heads, head_dim=head_dim).to(dtype)
        rows, coarse = layout.total_tokens, max(block)

        def sees(_b: object, _h: object, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
            return (m < tiv) | (n < tiv) | ((m - tiv) // frame == (n - tiv) // frame)

        mask = create_block_mask(sees, None, None, rows, rows, device="cpu", BLOCK_SIZE=coarse)
        q, k, v = (self.case.inputs[name].transpose(0, 1)[None] for name in "qkv")
        blocks = {"KV_NUM_BLKS": mask.kv_num_blocks, "KV_IDX": mask.kv_indices}
        blocks |= {"FULL_KV_NUM_BLKS": mask.full_kv_num_blocks, "FULL_KV_IDX": mask.full_kv_indices}
        self.inputs = {"Q": q, "K": k, "V": v, **blocks}
        operands = {name: Operand.like(x) for name, x in self.inputs.items()}
        operands |= {"LSE": Operand((1, heads, rows), (heads * rows, rows, 1), "fp32")}
        operands |= {"MAX": Operand((1,), (1,), "fp32"), "OUT": operands["Q"]}
        constants = dict.fromkeys(("QK_HEAD_DIM", "QK_HEAD_DIM_ROUNDED", "V_HEAD_DIM", "V_HEAD_DIM_ROUNDED"), head_dim)
        constants |= dict.fromkeys(("SPARSE_Q_BLOCK_SIZE", "SPARSE_KV_BLOCK_SIZE"), coarse)
        constants |= dict.fromkeys(
            ("PRESCALE_QK", "ROWS_GUARANTEED_SAFE", "BLOCKS_ARE_CONTIGUOUS", "OUTPUT_MAX"), False
        )
        constants |= dict.fromkeys(("HAS_FULL_BLOCKS", "SAFE_HEAD_DIM", "OUTPUT_LOGSUMEXP"), True)
        constants |= {"BLOCK_M": block[0], "BLOCK_N": block[1], "IS_DIVISIBLE": rows % coarse == 0, "USE_TMA": by_tma}
        constants |= {"SM_SCALE": self.case.the_scale, "GQA_SHARED_HEADS": heads // kv_heads}
        constants |= {"FLOAT32_PRECISION": '"ieee"'}
        scores = "qk", f"(m < {tiv}) | (n < {tiv}) | ((m - {tiv}) // {frame} == (n - {tiv}) // {frame})"
        self.filled = Filled(FLEX, operands, constants, warps, scores=scores)
        self.grid = -(-rows // block[0]), 1, heads


FLEXES = {
    "TMA, lines of 64 bytes": Flex(torch.float16, 32, (64, 64), by_tma=True),
    "products of single warps": Flex(torch.bfloat16, 32, (16, 16), by_tma=False),
}


@pytest.fixture(scope="module")
def translations():
    """The PTX of every template that this version of torch has, by the filled one's id."""
    everything = [*MATMULS.values(), *(flex.filled for flex in FLEXES.values())]
    here = [filled for filled in everything if torch_templates.is_here(filled.template)]
    return {id(x): foreign for x, foreign in outside_the_interpreter(torch_templates.translate, here)}


def translation(translations, filled: Filled) -> torch_templates.Foreign:
    if id(filled) not in translations:
        pytest.skip(f"torch {torch.__version__} has no template {filled.template}")
    return translations[id(filled)]


def operands(filled: Filled, seed: int) -> dict[str, torch.Tensor]:
    """Standard normal."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name in "AB":
        shape, strides, kind = filled.operands[name]
        empty = torch.empty_strided(shape, strides, dtype=torch_templates.DTYPES[kind])
        found[name] = empty.copy_(torch.randn(shape, generator=draw))
    return found


def run_matmul(filled: Filled, foreign: torch_templates.Foreign, seed: int) -> cuda_emulator.Counters:
    inputs = operands(filled, seed)
    (m, n), tiles = filled.operands["OUT"].shape, filled.constants
    each = -(-m // tiles["BLOCK_M"]) * -(-n // tiles["BLOCK_N"])
    blocks = each if filled.template == MATMUL else BLOCKS
    results, machine = torch_templates.run(foreign, filled, inputs, (blocks, 1, 1), seed)
    check_product(inputs["A"], inputs["B"], results["OUT"])
    return machine.counters


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MATMULS)
def test_matmul(translations, name, seed):
    filled = MATMULS[name]
    foreign = translation(translations, filled)
    counters = run_matmul(filled, foreign, seed)
    assert counters.wgmma and not counters.mma
    assert bool(counters.tma_loads) == ("tma" in filled.template)
    assert bool(counters.tma_stores) == filled.stores_by_tma
    if name.startswith("specialised"):  # a warpgroup that loads, two that multiply, where triton does so
        assert foreign.warps in (filled.warps, 3 * filled.warps)
        assert (foreign.warps > filled.warps) == ("setmaxnreg" in foreign.text)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FLEXES)
def test_flex_attention(translations, name, seed):
    flex = FLEXES[name]
    foreign = translation(translations, flex.filled)
    results, machine = torch_templates.run(foreign, flex.filled, flex.inputs, flex.grid, seed)
    out, lse = results["OUT"][0].transpose(0, 1), math.log(2) * results["LSE"][0].T
    check_results({"out": out, "lse": lse}, flex.case, Arithmetic(out.dtype))
    assert bool(machine.counters.wgmma) == (flex.filled.constants["BLOCK_M"] >= 64)
    assert bool(machine.counters.tma_loads) == flex.filled.constants["USE_TMA"]


# The kernel, what is changed in its PTX and into what, and what finds it: a kind of finding, or "numbers".
FAULTS = {
    "swizzle of another width": ("TMA", r"(swizzle_mode\S* \[[^]]*\]), 0x3", r"\1, 0x2", "tma"),
    "map not acquired": ("TMA", r"@\S+ fence\.proxy\.tensormap[^;]*;", "", "proxy-fence"),
    "map not published": ("TMA", r"@\S+ tensormap\.cp_fenceproxy[^;]*;", "", "proxy-fence"),
    "map of fewer rows": ("TMA", r"(global_dim\S* \[[^]]*\], 0x1), [^;]*;", r"\1, 64;", "numbers"),
    "fewer bytes expected": ("TMA", r"(expect_tx\S* _, \[[^]]*\]), 16384", r"\1, 8192", "mbarrier"),
    "data not waited for": ("TMA", r"mbarrier\.try_wait\S* complete, [^;]*;", "mov.pred complete, -1;", "in-flight"),
    "store not fenced": ("TMA", r"fence\.proxy\.async[^;]*;", "", "proxy-fence"),
    "A read as if M came first": ("TMA", r"(wgmma\.mma_async[^;]*1, 1), 0, (\d);", r"\1, 1, \2;", "numbers"),
    "operands without swizzle": ("TMA", r"(or\.b64\s+%rd\d+, %rd\d+), 4611686293\d+;", r"\1, 0;", "numbers"),
    "one arrival too few": (
        "specialised warps",
        r"(mbarrier\.arrive\.shared\S* _, \[[^]]*\]), 128;",
        r"\1;",
        "deadlock",
    ),
    "buffer released early": (
        "specialised warps",
        r"wgmma\.wait_group\.sync\.aligned 0;",
        "wgmma.wait_group.sync.aligned 1;",
        "race",
    ),
    "data not waited for, specialised warps": (
        "specialised warps",
        r"mbarrier\.try_wait\S* complete, [^;]*;",
        "mov.pred complete, -1;",
        "race",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_ptx_are_found(translations, fault):
    name, old, new, finding = FAULTS[fault]
    foreign = translation(translations, MATMULS[name])
    text, count = re.subn(old, new, foreign.text)
    assert count, "the PTX does not hold what the fault changes"
    with pytest.raises(AssertionError) as found:
        run_matmul(MATMULS[name], foreign._replace(text=text), seed=0)
    kinds = getattr(found.value, "kinds", {"numbers"})
    assert finding in kinds, str(found.value)
