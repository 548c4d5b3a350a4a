"""Triton's kernels on the emulator: the PTX that triton makes of them for GPUs, in place of its interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cuda_emulator
import torch
from cuda_emulator import Kernels
from torch import Tensor

from benchmarks.machine_code.compile import Job, Ptx, build_of

DRIVER = Path(__file__).with_name("launch_ptx.cpp")

# What each kernel fills; its other tensors are read.
RESULTS = {
    "forward": {"OUT", "LSE", "PART_OUT", "PART_LSE"},
    "merge_outputs": {"OUT", "LSE"},
    "delta": {"LSE2", "DELTA"},
    "dq": {"DQ", "PART_DQ"},
    "dkdv": {"DK", "DV", "DK_TIV", "DV_TIV", "PART_DK", "PART_DV"},
    "sum_gradients": {"GRAD", "GRAD_TIV"},
}
NUMBERS = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}


class Compiled(NamedTuple):
    """Attributes:

    entry: of the C++ made of its PTX. threads, shared: of a block.
    arguments: the names and kinds of those that are no constants.
    """

    entry: int
    threads: int
    shared: int
    arguments: dict[str, str]


Programs = dict[tuple[str, frozenset[tuple[str, object]]], Compiled]  # by kernel and what it was compiled for


def compile_programs(translations: Mapping[Job, Ptx], change: Callable[[str], str] = str) -> Programs:
    """``change``: made to the PTX of each."""
    cuda_emulator.runtime()  # what libraries of PTX are linked to
    found: Programs = {}
    for job, ptx in translations.items():
        build = build_of(job)
        library = ctypes.CDLL(str(cuda_emulator.build_text(change(ptx.text))))
        entry = ctypes.cast(library[f"ptx_{build.function.fn.__name__}"], ctypes.c_void_p).value
        arguments = {name: kind for name, kind in build.signature.items() if kind != "constexpr"}
        constants = frozenset((build.constants | build.options).items())
        found[job.kernel, constants] = Compiled(entry, 32 * ptx.warps, ptx.shared, arguments)
    return found


class Machine(Kernels):
    """An emulated GPU with tensors that the host knows: what a kernel reads is copied there, what it fills back.

    Attributes:
        seed: of the next launches. launched: the kernels so far. products: mma.sync and wgmma that these executed.
    """

    def __init__(self, programs: Programs):
        super().__init__(cuda_emulator.build(DRIVER))
        self.programs, self.seed = programs, 0
        self.launched: list[str] = []
        self.products = {"mma": 0, "wgmma": 0}
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # by host address: the bytes of a storage, here and there

    def stand_in(self, kernel: str) -> Launcher:
        """Takes the place of a jitted function."""
        return Launcher(self, kernel)

    def launch(self, kernel: str, blocks: int, *values: object, **constants: object) -> None:
        program = self.programs[kernel, frozenset(constants.items())]
        held, filled = [], []
        for (name, kind), value in zip(program.arguments.items(), values, strict=True):
            if isinstance(value, Tensor):
                fills = name in RESULTS[kernel]
                held.append(ctypes.c_uint64(self._address(name, value, fills)))
                filled += [value] * (fills and value.numel() > 0)
            else:
                held.append(NUMBERS[kind](value))
        held += [ctypes.c_uint64(0)] * 2  # triton's own: memory for kernels that ask for it
        pointers = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        shape = blocks, 1, 1, program.threads, program.shared
        self.call("launch", program.entry, pointers, *shape, seed=self.seed, repeated_stores=True)
        self.launched.append(kernel)
        self.products = {unit: n + getattr(self.counters, unit) for unit, n in self.products.items()}
        for value in filled:
            here, there = self._copies[value.untyped_storage().data_ptr()]
            here.copy_(there)

    def _address(self, name: str, x: Tensor, fills: bool) -> int:
        """Where x is on the device: its storage goes there once, of what is to be filled only its size."""
        if x.numel() == 0:
            return 0
        storage = x.untyped_storage()
        if storage.data_ptr() not in self._copies:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            there = self.empty(here.shape, torch.uint8, name) if fills else self.tensor(here, name)
            self._copies[storage.data_ptr()] = here, there
        return self._copies[storage.data_ptr()][1].data_ptr() + x.storage_offset() * x.element_size()


class Launcher:
    """launcher[grid](arguments, constants and options)."""

    def __init__(self, machine: Machine, kernel: str):
        self.machine, self.kernel = machine, kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return partial(self.machine.launch, self.kernel, grid[0])
