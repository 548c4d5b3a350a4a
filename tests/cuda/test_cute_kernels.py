"""Kernels of CuTe and CUTLASS on the emulator: its reading of descriptors, swizzles, fragments, TMA boxes and barriers.

Matrix products in every swizzle and major order, A from shared memory or from registers, through a ring of TMA loads to
a TMA store (cute_products.cu), and CUTLASS's own kernels of specialised warps (cutlass_products.cu), held against
float64. Runs where nvcc and nvidia-cutlass are (`pip install --no-deps nvidia-cutlass` is enough).
"""

from __future__ import annotations

import re

import cuda_emulator
import cute_runs
import pytest
import torch
from cute_runs import Product
from products import check_product

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported)),
    pytest.mark.skipif(cuda_emulator.nvcc is None, reason="needs nvcc"),
    pytest.mark.skipif(cute_runs.source() is None, reason="needs CUTLASS's headers: nvidia-cutlass"),
]

CUTE = "cute_products"
PRODUCTS = {
    product.name: product
    for product in (
        Product(CUTE, "sw128_kn", "kn", torch.bfloat16),
        Product(CUTE, "sw128_mk", "mk", torch.float16),
        Product(CUTE, "sw64_mk", "mk", torch.bfloat16),
        Product(CUTE, "sw32_kn", "kn", torch.float16),
        Product(CUTE, "plain_kk", "kk", torch.bfloat16),
        Product(CUTE, "plain_mn", "mn", torch.float16),
        Product(CUTE, "registers_kk", "kk", torch.float16),
    )
}
CUTLASS = (
    Product("cutlass_products", "cooperative", "kk", torch.bfloat16),
    Product("cutlass_products", "pingpong", "mn", torch.float16),
)
SHAPE = 136, 72, 200  # M, N, K: several tiles each way, and edges


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name, seed):
    product = PRODUCTS[name]
    a, b = product.operands(*SHAPE, seed)
    out, machine = cute_runs.run(product, a, b, seed)
    check_product(a, b, out)
    counters = machine.counters
    assert counters.wgmma and counters.tma_loads and counters.tma_stores and not counters.mma


@pytest.mark.parametrize("eager_copies", [False, True])
@pytest.mark.parametrize("product", CUTLASS, ids=lambda product: product.name)
def test_kernels_of_specialised_warps(product, eager_copies):
    """CUTLASS's own, which take two liberties with the ISA.

    All lanes of a warp issue the same TMA store, a race of equal bytes. And lane 0 announces the bytes that the lane of
    `elect.sync` loads; the ISA leaves open which one that is, and the emulator elects lane 0 where no seed is given.
    """
    a, b = product.operands(*SHAPE, seed=0)
    out, machine = cute_runs.run(product, a, b, repeated_tma_stores=True, eager_copies=eager_copies)
    check_product(a, b, out)
    assert machine.counters.wgmma and machine.counters.tma_loads and machine.counters.tma_stores


def test_a_tensor_map_without_swizzle_is_found():
    """The operand's descriptor has one of 128 bytes."""
    product = PRODUCTS["sw128_kn"]
    a, b = product.operands(*SHAPE, seed=0)
    out, _ = cute_runs.run(product, a, b, a_without_swizzle=True)
    with pytest.raises(AssertionError, match="of the budget"):
        check_product(a, b, out)


def exchange_offsets(descriptor: int) -> int:
    """Leading and stride offset, 14 bits each from bit 16 and from bit 32 on (PTX ISA, "matrix descriptor")."""
    lead, stride = descriptor >> 16 & 0x3FFF, descriptor >> 32 & 0x3FFF
    return descriptor ^ (lead ^ stride) * (1 << 16 | 1 << 32)


# The kernel, what is changed in its PTX and into what, and what finds it: a kind of finding, or "numbers".
FAULTS = {
    "offsets of a descriptor exchanged": (
        "plain_mn",
        r"(or\.b64\s+\S+ \S+ )(\d+);",
        lambda m: f"{m[1]}{exchange_offsets(int(m[2]))};",
        "in-flight",
    ),
    "no swizzle in a descriptor": (
        "sw32_kn",
        r"(or\.b64\s+\S+ \S+ )(-?\d+);",
        lambda m: f"{m[1]}{int(m[2]) % 2**64 & ~(3 << 62)};",
        "in-flight",
    ),
    "registers of A in another order": (
        "registers_kk",
        r"(ldmatrix\S* \{%\w+), (%\w+), (%\w+),",
        r"\1, \3, \2,",
        "numbers",
    ),
    "data not waited for": ("plain_kk", r"mbarrier\.try_wait\S* P1, [^;]*;", "mov.pred P1, -1;", "in-flight"),
    "more bytes expected": ("plain_kk", r"(mov\.[bu]32\s+\S+ )8192;", r"\g<1>8208;", "deadlock"),
    "store not fenced": ("plain_kk", r"fence\.proxy\.async[^;]*;", "", "proxy-fence"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_ptx_are_found(fault):
    name, old, new, finding = FAULTS[fault]
    product = PRODUCTS[name]
    a, b = product.operands(*SHAPE, seed=0)

    def planted(text: str) -> str:
        changed, count = re.subn(old, new, text)
        assert count, "the PTX does not hold what the fault changes"
        return changed

    with pytest.raises(AssertionError) as found:
        out, _ = cute_runs.run(product, a, b, change=planted)
        check_product(a, b, out)
    assert finding in getattr(found.value, "kinds", {"numbers"}), str(found.value)
