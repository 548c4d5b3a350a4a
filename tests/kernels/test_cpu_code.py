"""The machine code of the CPU engine's product loops, read from its library: loads, broadcasts and products alone."""

import re
import shutil
import subprocess
from functools import cache

import pytest

from tivtok_kernels.cpu import backend

if shutil.which("objdump") is None or not backend.LIBRARY.exists() or "avx2" not in backend.variants():
    pytest.skip("needs objdump and the CPU engine for x86", allow_module_level=True)

INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(?:bnd )?(\S+)\s*(.*)$")

STACK = re.compile(r"\(%rsp|-0x[0-9a-f]+\(%rbp")


@cache
def innermost_loops() -> list[list[tuple[str, str]]]:
    """Innermost loops of the library, as (mnemonic, operands)."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(backend.LIBRARY)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [(int(m[1], 16), m[2], m[3]) for m in map(INSTRUCTION.match, text.splitlines()) if m]
    at = {address: i for i, (address, _, _) in enumerate(code)}
    loops = []
    for i, (address, name, operands) in enumerate(code):
        target = re.match(r"[0-9a-f]+", operands) if name.startswith("j") else None
        if target is None or int(target[0], 16) >= address or int(target[0], 16) not in at:
            continue
        body = [(name, operands) for _, name, operands in code[at[int(target[0], 16)] : i]]
        if not any(name.startswith(("j", "call", "ret")) for name, _ in body):
            loops.append(body)
    return loops


def product_loops(register: str) -> list[list[tuple[str, str]]]:
    """Those with at least 8 products of these vectors, but for exponentials, which scale by powers of two."""

    def products(body: list[tuple[str, str]]) -> int:
        return sum(name.startswith("vfmadd") and register in operands for name, operands in body)

    exponentials = ("vpslld", "vscalef")
    return [
        body
        for body in innermost_loops()
        if products(body) >= 8 and not any(name.startswith(exponentials) for name, _ in body)
    ]


def accumulators(body: list[tuple[str, str]]) -> int:
    return len({operands.rsplit(",", 1)[1] for name, operands in body if name.startswith("vfmadd")})


@pytest.mark.parametrize("register", ["ymm", "zmm"])
def test_product_loops_spill_nothing(register):
    for body in product_loops(register):
        stores = [operands for name, operands in body if name.startswith("vmov") and operands.endswith(")")]
        assert not stores, body
        assert not any(STACK.search(operands) for name, operands in body if name[0] == "v"), body


@pytest.mark.parametrize(("register", "tiles"), [("ymm", [(3, 4), (2, 6)]), ("zmm", [(3, 8), (2, 12)])])
def test_full_tiles_do_what_the_floor_counts(register, tiles):
    """A step of a tile reads its vectors and numbers once and adds their products: little else is in the loop."""
    full = [body for body in product_loops(register) if accumulators(body) == tiles[0][0] * tiles[0][1]]
    assert len(full) >= 6  # scores, gradients, sums of values, dQ, dV and dK
    seen = set()
    for body in full:
        products = sum(name.startswith("vfmadd") for name, _ in body)
        steps, rest = divmod(products, accumulators(body))
        reads = sum("(%" in operands for name, operands in body if name[0] == "v")
        assert rest == 0 and reads in [steps * (vectors + numbers) for vectors, numbers in tiles], body
        assert len(body) - products - reads <= max(6, steps), body  # addresses and the counter
        seen.add(reads // steps)
    assert seen == {vectors + numbers for vectors, numbers in tiles}


@pytest.mark.skipif("amx" not in backend.variants(), reason="the compiler knew no AMX")
def test_full_tile_registers_take_a_load_per_product():
    """2 x 2 tiles of sums: two tiles from either side, four products, addresses and the counter."""
    loops = [[name for name, _ in body] for body in innermost_loops()]
    full = [body for body in loops if body.count("tdpbf16ps") == 4]
    assert len(full) >= 2  # scores and sums of values
    for body in full:
        assert body.count("tileloadd") == 4 and len(body) - 8 <= 12, body
        assert not any(name[0] == "v" for name in body), body
