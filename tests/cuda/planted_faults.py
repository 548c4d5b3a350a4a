"""All planted faults of a kernel in one library, each behind a switch: one build serves them all."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Sequence
from pathlib import Path

from cuda_emulator import CSRC, Kernels, Mutation, compile_kernels

_DECLARATION = 'extern "C" int planted_fault;  // 0: none\n'


def build_with_faults(driver: Path, faults: Sequence[Mutation], folder: Path) -> Path:
    """The driver's library with every fault behind a switch, from a copy of csrc (in ``folder``).

    Text that ends in ";" is taken as statements, other text as an expression.

    Raises:
        ValueError: the text of a fault does not occur exactly once in its file, or an earlier fault cut it up.
    """
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    for number, fault in enumerate(faults, start=1):
        if (found := (CSRC / fault.file).read_text().count(fault.old)) != 1:
            raise ValueError(f"fault {fault.name!r}: csrc/{fault.file} holds its text {found} times, expected once")
        path = csrc / fault.file
        text = path.read_text()
        if fault.old not in text:
            raise ValueError(f"fault {fault.name!r} overlaps an earlier one: list the longer text first")
        path.write_text(text.replace(fault.old, _switched(number, fault)))
    for file in {fault.file for fault in faults}:
        path = csrc / file
        path.write_text(_DECLARATION + path.read_text())
    wrapper = folder / driver.name
    wrapper.write_text(f'{_DECLARATION}int planted_fault = 0;\n#include "{driver}"\n')
    library = folder / f"{driver.stem}.so"
    compile_kernels(wrapper, csrc, library)
    return library


def switch_on(kernels: Kernels, number: int) -> None:
    """Plants fault ``number``, counted from 1; 0: none."""
    ctypes.c_int.in_dll(kernels.library, "planted_fault").value = number


def _switched(number: int, fault: Mutation) -> str:
    if fault.old.endswith(";"):
        return f"if (planted_fault == {number}) {{ {fault.new} }} else {{ {fault.old} }}"
    return f"(planted_fault == {number} ? ({fault.new}) : ({fault.old}))"
