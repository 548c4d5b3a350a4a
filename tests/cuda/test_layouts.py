"""Where the Hopper kernels keep elements, against the layout algebra of CuTe: the atoms of its own headers, by pycute.

Runs where nvidia-cutlass is installed, which brings both (`pip install --no-deps nvidia-cutlass` is enough).
"""

from __future__ import annotations

import ast
import ctypes
import itertools
import os
import re
import shutil
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

pycute = pytest.importorskip("pycute")

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
ROWS, COLUMNS, BASE = 64, 128, 5 * 1024


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """layouts.cpp, compiled for the CPU."""
    if shutil.which(CXX) is None:
        pytest.skip(f"needs {CXX}")
    library = tmp_path_factory.mktemp("layouts") / "layouts.so"
    emulator = ROOT / "tests" / "emulator"
    command = [CXX, "-std=c++20", "-O1", "-fPIC", "-shared", "-w", f"-I{ROOT / 'csrc'}", f"-I{emulator / 'include'}"]
    sources = [ROOT / "tests" / "cuda" / "layouts.cpp", emulator / "src" / "numbers.cpp"]
    subprocess.run([*command, *sources, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("columns_summed", "rows_summed", "forward_columns", "forward_rows"):
        getattr(loaded, name).restype = ctypes.c_uint64
    return loaded


@pytest.fixture(scope="module")
def atoms():
    """Layouts of CuTe's headers by name; those of CLayout_64xN for N = 64."""
    package = find_spec("cutlass_library")
    header = Path(package.submodule_search_locations[0]) / "source/include/cute/atom/mma_traits_sm90_gmma.hpp"
    text = header.read_text().replace("Int<N/8>", "_8")
    found = {}
    for name in ("CLayout_64xN", "ALayout_64x16", "Layout_K_SW128_Atom_Bits", "Layout_MN_SW128_Atom_Bits"):
        stated = re.search(rf"using {name}\s*=\s*([^;]*);", text)[1]
        brackets = re.sub(r"(?:Layout|Shape|Stride)\s*<", "(", stated[stated.index("Layout<Shape") :]).replace(">", ")")
        surplus = brackets.count(")") - brackets.count("(")  # of what the layout is composed with
        shape, stride = ast.literal_eval(re.sub(r"_(\d+)", r"\1", brackets[: len(brackets) - surplus]).strip())
        found[name] = pycute.Layout(shape, stride)
        if "SW128" in name:
            assert "Swizzle<3,4,3>" in stated.replace(" ", "")
    return found


swizzle = pycute.Swizzle(3, 4, 3)  # of byte addresses: 16-byte chunks within 128 bytes, by the row of eight


def decoded(descriptor: int) -> tuple[int, int, int, int]:
    """Start, leading and stride offset in bytes, code of the swizzle."""
    start, lead, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    return start, lead, stride, descriptor >> 62


def test_elements_lie_in_atoms_of_the_128_byte_swizzle(kernels, atoms):
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        panel, rest = divmod(column, 64)
        for name, at in (("K", (row % 8, rest * 16)), ("MN", (rest * 16, row % 8))):
            inside = swizzle(atoms[f"Layout_{name}_SW128_Atom_Bits"](*at) // 8)
            assert kernels.place(row, column) == panel * ROWS * 128 + row // 8 * 1024 + inside


@pytest.mark.parametrize("name", ["columns_summed", "forward_columns"])
def test_operands_summed_along_memory(kernels, name):
    """Canonical layout of the header: Swizzle<3,4,3> o ((8,m),(T,2)):((8T,SBO),(1,T)), T elements in 16 bytes."""
    for column in range(0, COLUMNS, 16):
        start, _, stride, code = decoded(getattr(kernels, name)(BASE, column))
        layout = pycute.Layout(((8, ROWS // 8), 16), ((64, stride // 2), 1))
        assert code == 1
        for row, k in itertools.product(range(ROWS), range(16)):
            assert swizzle(start + 2 * layout(row, k)) == BASE + kernels.place(row, column + k)


@pytest.mark.parametrize("name", ["rows_summed", "forward_rows"])
def test_operands_summed_across_memory(kernels, name):
    """Canonical layout of the header: Swizzle<3,4,3> o ((T,8,m),(8,k)):((1,T,LBO),(8T,SBO))."""
    for row in range(0, ROWS, 16):
        start, lead, stride, code = decoded(getattr(kernels, name)(BASE, row))
        layout = pycute.Layout(((8, 8, COLUMNS // 64), (8, 2)), ((1, 8, lead // 2), (64, stride // 2)))
        assert code == 1
        for column, k in itertools.product(range(COLUMNS), range(16)):
            assert swizzle(start + 2 * layout(column, k)) == BASE + kernels.place(row + k, column)


def test_accumulators_become_the_left_operand(kernels, atoms):
    """What lies in register j of step s is what CuTe's layout of A wants there: column 16 s + ... of C."""
    registers = (ctypes.c_uint32 * 16)()
    kernels.packed(registers)
    sums, left = atoms["CLayout_64xN"], atoms["ALayout_64x16"]
    for thread, number in itertools.product(range(128), range(16)):
        for half in range(2):
            bits = (registers[number] >> 16 * half & 0xFFFF) << 16
            which = int(struct.unpack("f", struct.pack("I", bits))[0])
            column, row = divmod(sums(thread, which), 64)
            step, place = divmod(number, 4)
            wanted_column, wanted_row = divmod(left(thread, 2 * place + half), 64)
            assert (row, column) == (wanted_row, 16 * step + wanted_column)
