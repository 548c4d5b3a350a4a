"""Kernels made of CuTe's and CUTLASS's headers on the emulator: what nvcc makes of them for sm_90a, as PTX.

The host's side is theirs, too, compiled as it is: layouts, tensor maps and grids. It asks the emulator for tensor maps,
in place of the driver.
"""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cuda_emulator
import torch
from cuda_emulator import Findings, Kernels, cached, contents, nvcc, run_tool
from torch import Tensor
from triton_runs import DRIVER

HERE = Path(__file__).parent
FLAGS = ["-std=c++20", "-DNDEBUG", "--expt-relaxed-constexpr", "-gencode", "arch=compute_90a,code=compute_90a"]
FLAGS += ["-shared", "-Xcompiler", "-fPIC", "-w"]
FLAGS += ["-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL"]  # linked to whoever has cuTensorMapEncodeTiled: the emulator


def source() -> Path | None:
    """CUTLASS, which the package nvidia-cutlass brings along."""
    package = find_spec("cutlass_library")
    folder = Path(package.submodule_search_locations[0], "source") if package else None
    return folder if folder and (folder / "include/cute/tensor.hpp").exists() else None


class Problem(ctypes.Structure):
    """Mirrors cute_launch.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("a", "b", "out")]
    _fields_ += [(name, ctypes.c_int) for name in ("m", "n", "k", "a_without_swizzle")]


class Launch(ctypes.Structure):
    """Mirrors cute_launch.h."""

    _fields_ = [("params", ctypes.c_void_p), ("grid", ctypes.c_int * 3)]
    _fields_ += [(name, ctypes.c_int) for name in ("threads", "shared_bytes")]


class Product(NamedTuple):
    """A kernel of a unit. majors: along which dimension it expects A (M, K) and B (K, N) to be contiguous."""

    unit: str
    name: str
    majors: str
    dtype: torch.dtype

    def operands(self, m: int, n: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
        """Standard normal."""
        draw = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(shape, generator=draw).to(self.dtype) for shape in ((m, k), (k, n)))
        return _along(a, self.majors[0] == "k"), _along(b, self.majors[1] == "n")


def _along(x: Tensor, rows: bool) -> Tensor:
    return x if rows else x.T.contiguous().T


def compile_unit(unit: str) -> Path:
    """The library of the host's side; beside it, as .ptx, the kernels."""
    include = source() / "include"

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            keep = ["-keep", "-keep-dir", folder]
            run_tool([nvcc, *FLAGS, *keep, f"-I{include}", "-o", path, HERE / f"{unit}.cu"])
            path.with_suffix(".ptx").write_bytes(Path(folder, f"{unit}.ptx").read_bytes())

    files = contents([HERE / f"{unit}.cu", HERE / "cute_launch.h"])
    return cached(unit, [FLAGS, version("nvidia-cutlass"), run_tool([nvcc, "--version"]), *files], make)


def text_of(product: Product) -> str:
    """The PTX of this kernel alone."""
    text = compile_unit(product.unit).with_suffix(".ptx").read_text()
    head, *entries = re.split(r"^(?=\S.*\.entry )", text, flags=re.MULTILINE)
    (entry,) = (entry for entry in entries if product.name in entry.split("(")[0])
    return head + entry


def run(
    product: Product,
    a: Tensor,
    b: Tensor,
    seed: int = 0,
    change: Callable[[str], str] = str,
    a_without_swizzle: bool = False,
    repeated_tma_stores: bool = False,
    eager_copies: bool = False,
) -> tuple[Tensor, Kernels]:
    """OUT, and the machine it ran on.

    change: of the PTX; repeated_tma_stores: several threads may issue the same one.
    """
    cuda_emulator.runtime()  # what both libraries are linked to
    host = ctypes.CDLL(str(compile_unit(product.unit)))
    text = change(text_of(product))
    library = ctypes.CDLL(str(cuda_emulator.build_text(text)))
    entry = ctypes.cast(library["ptx_" + re.search(r"\.entry (\w+)", text)[1]], ctypes.c_void_p).value
    machine = Kernels(cuda_emulator.build(DRIVER))
    (m, k), n = a.shape, b.shape[1]
    there = [machine.tensor(x.as_strided((x.numel(),), (1,)), name) for name, x in (("A", a), ("B", b))]
    out = machine.empty((m, n), product.dtype, "OUT")
    describe = host[f"{product.name}_launch"]
    describe.restype = Launch
    problem = Problem(*(x.data_ptr() for x in (*there, out)), m, n, k, a_without_swizzle)
    launch = describe(ctypes.byref(problem))
    pointers = (ctypes.c_void_p * 1)(launch.params)
    block = launch.threads, launch.shared_bytes
    try:
        machine.call("launch", entry, pointers, *launch.grid, *block, seed=seed, eager_copies=eager_copies)
    except Findings as found:
        stores = all(r["kind"] == "race" and r["message"].count("TMA store at") for r in found.reports)
        if not (repeated_tma_stores and stores):
            raise
    return out.clone(), machine
