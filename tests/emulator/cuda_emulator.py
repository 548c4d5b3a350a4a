"""Building CUDA kernels with g++ and running them on the emulator. README.md says what it checks, and how."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ptx2cpp
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
INCLUDE = HERE / "include"
CACHE = ROOT / "build" / "emulator"

CXX = os.environ.get("CXX", "g++")
CXX_FLAGS = ["-std=c++20", "-g1", "-fPIC", "-Wno-unknown-pragmas", "-Wno-psabi"]
RUNTIME_FLAGS = ["-O3", "-march=native"]
# Every load and store of a kernel becomes a call into the emulator. Registers are watched by their stack slots, so no
# two variables may share one.
KERNEL_FLAGS = ["-O1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fstack-reuse=none"]
TRANSLATED_FLAGS = ["-O1", "-w"]

unsupported = None if platform.machine() == "x86_64" and shutil.which(CXX) else f"the emulator needs x86-64 and {CXX}"
cuda_home = os.environ.get("CUDA_HOME")
nvcc = shutil.which("nvcc", path=f"{cuda_home}/bin" if cuda_home else None)  # as setup.py finds it


class Findings(AssertionError):
    """What the emulator found wrong in a launch: `.reports`, dicts of kind, message, where and count."""

    def __init__(self, reports: list[dict]):
        self.reports = reports
        lines = [f"[{r['kind']}] {r['message']}\n    at {r['where']} ({r['count']} times)" for r in reports]
        super().__init__("the emulator found\n" + "\n".join(lines))

    @property
    def kinds(self) -> set[str]:
        return {r["kind"] for r in self.reports}


# ---------------------------------------------------------------------------------------------------------- building


def run_tool(command: Sequence[object]) -> str:
    """stdout of a compiler. Raises RuntimeError with its first errors."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[:6000]}")
    return done.stdout


def cached(name: str, parts: Iterable[object], make: Callable[[Path], None]) -> Path:
    """CACHE/name-<hash of the parts>.so, made by make(path) unless it is there. Workers that want the same one wait."""
    digest = hashlib.sha256(repr([str(p) for p in parts]).encode()).hexdigest()[:20]
    path = CACHE / f"{name}-{digest}.so"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_suffix(".part")
            make(part)
            part.replace(path)
    return path


def contents(files: Iterable[Path]) -> list[str]:
    return [f"{f.name} {hashlib.sha256(f.read_bytes()).hexdigest()}" for f in sorted(files)]


def includes(csrc: Path) -> list[str]:
    return [f"-I{INCLUDE}", f"-I{csrc}"]


def compile_runtime(path: Path) -> None:
    sources = sorted((HERE / "src").glob("*.cpp"))
    run_tool([CXX, *CXX_FLAGS, *RUNTIME_FLAGS, *includes(CSRC), "-shared", "-o", path, *sources, "-ldl"])


def compile_kernels(driver: Path, csrc: Path, path: Path) -> None:
    """The library of a test driver. The instrumentation's own runtime is never linked: the emulator takes its place."""
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / "unit.o"
        run_tool([CXX, *CXX_FLAGS, *KERNEL_FLAGS, *includes(csrc), "-c", driver, "-o", unit])
        run_tool([CXX, "-shared", "-o", path, unit])


def compile_ptx(source: str, arch: str, folder: Path, path: Path) -> None:
    target = f"arch=compute_{arch},code=compute_{arch}"
    with tempfile.TemporaryDirectory() as temporary:
        unit, ptx = (Path(temporary) / f"unit.{suffix}" for suffix in ("cu", "ptx"))
        unit.write_text(source)
        flags = ["-std=c++20", "-O3", "-lineinfo", "-gencode", target, f"-I{CSRC}", f"-I{folder}"]
        run_tool([nvcc, *flags, "-ptx", "-o", ptx, unit])
        compile_translation(ptx.read_text(), path)


def compile_translation(ptx: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        cpp = Path(temporary) / "unit.cpp"
        cpp.write_text(ptx2cpp.translate(ptx))
        run_tool([CXX, *CXX_FLAGS, *TRANSLATED_FLAGS, *includes(CSRC), "-shared", "-o", path, cpp])


def build(driver: Path) -> Path:
    """The shared library of a test driver (a .cpp with extern "C" functions) and the kernels that it includes."""
    rule = run_tool([CXX, *CXX_FLAGS, *includes(CSRC), "-MM", driver])
    files = [Path(name) for name in rule.replace("\\\n", " ").split()[1:]]
    parts = [CXX_FLAGS, KERNEL_FLAGS, run_tool([CXX, "--version"]), *contents(files)]
    return cached(driver.stem, parts, functools.partial(compile_kernels, driver, CSRC))


def build_ptx(source: str, arch: str, folder: Path = CSRC) -> Path:
    """C++ made from the PTX that nvcc emits for a unit such as

    #include "forward/ampere/kernel.h"
    template __global__ void attention<Config>(const __grid_constant__ Params);

    arch: sm_80 or sm_90a; folder: where the unit's headers outside csrc are. Raises ptx2cpp.UnsupportedPtx.
    """
    files = {f for root in (CSRC, folder, INCLUDE) for f in root.rglob("*.h")} | set(HERE.glob("ptx*.py"))
    parts = [arch, source, run_tool([nvcc, "--version"]), *contents(files)]
    return cached("ptx", parts, functools.partial(compile_ptx, source, arch.removeprefix("sm_"), folder))


def build_text(ptx: str) -> Path:
    """C++ made from PTX, whoever wrote it. Raises ptx2cpp.UnsupportedPtx."""
    files = {*(CSRC / "common").glob("*.h"), *INCLUDE.rglob("*.h"), *HERE.glob("ptx*.py")}
    return cached("text", [ptx, *contents(files)], functools.partial(compile_translation, ptx))


@functools.cache
def runtime() -> ctypes.CDLL:
    """The emulator itself, one for the process."""
    files = {f for folder in (HERE / "src", INCLUDE) for f in folder.rglob("*") if f.is_file()}
    machine = run_tool([CXX, "-march=native", "-Q", "--help=target"])
    parts = [
        CXX_FLAGS,
        RUNTIME_FLAGS,
        machine,
        run_tool([CXX, "--version"]),
        *contents(files | {CSRC / "common/device.h"}),
    ]
    library = ctypes.CDLL(str(cached("runtime", parts, compile_runtime)), mode=ctypes.RTLD_GLOBAL)
    library.emu_alloc.restype = ctypes.c_void_p
    library.emu_counters.restype = ctypes.POINTER(Counters)
    library.emu_reports.restype = ctypes.c_char_p
    library.emu_events.restype = ctypes.c_void_p
    return library


# ----------------------------------------------------------------------------------------------------------- running


class Options(ctypes.Structure):
    """Mirrors emu::Options (src/runtime.h)."""

    _switches = dict.fromkeys(
        ("eager_copies", "seconds", "record", "repeated_stores", "unpublished_mbarriers"), ctypes.c_uint32
    )
    _fields_ = [("seed", ctypes.c_uint64), *_switches.items()]


EVENT = np.dtype([(name, np.uint32) for name in ["block", "thread", "kind", "subject", "amount", "first", "last"]])


class Counters(ctypes.Structure):
    """What the last call executed; mirrors emu::Counters (src/runtime.h)."""

    _names = (
        "launches blocks switches mma wgmma ldmatrix ldmatrix_wavefronts ldmatrix_ideal cp_async tma_loads tma_stores"
    )
    _fields_ = [(name, ctypes.c_uint64) for name in _names.split()]


def argument(value: object) -> object:
    """As the drivers declare them: pointers, int64_t, double and const char*."""
    match value:
        case torch.Tensor():
            return ctypes.c_void_p(value.data_ptr())
        case int():
            return ctypes.c_int64(value)
        case float():
            return ctypes.c_double(value)
        case str():
            return ctypes.c_char_p(value.encode())
        case None:
            return ctypes.c_void_p(None)
        case ctypes.Structure() | ctypes.Array():  # in host memory
            return ctypes.byref(value)
        case _:
            raise TypeError(f"argument: expected a tensor, number, string, ctypes structure or None, got {value!r}")


class Kernels:
    """The functions of one driver's library, and the device memory that they run on (emptied with each new object).

    library: from `build` or `mutant`; ptx: from `build_ptx`, which then runs instead of the kernels' source.
    """

    def __init__(self, library: Path, ptx: Path | None = None):
        self.runtime = runtime()
        self.runtime.emu_free_all()
        self.library = ctypes.CDLL(str(library))
        self.ptx = ctypes.CDLL(str(ptx)) if ptx else None
        self.counters = Counters()

    def empty(self, shape: Sequence[int], dtype: torch.dtype, name: str) -> torch.Tensor:
        """Device memory between red zones, filled with NaN bytes and not initialised."""
        count = math.prod(shape)
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        size = count * dtype.itemsize
        address = self.runtime.emu_alloc(ctypes.c_size_t(size), name.encode())
        if not address:
            raise MemoryError(f"{name}: {size} bytes do not fit into the emulator's device memory")
        memory = (ctypes.c_uint8 * size).from_address(address)
        return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))

    def tensor(self, source: torch.Tensor, name: str) -> torch.Tensor:
        """A contiguous copy of a tensor in device memory."""
        copy = self.empty(source.shape, source.dtype, name).copy_(source)
        if copy.numel():
            self.runtime.emu_mark_initialised(argument(copy), ctypes.c_size_t(copy.nbytes))
        return copy

    def written(self, tensor: torch.Tensor) -> torch.Tensor:
        """Which elements of a contiguous device tensor have been initialised: bool, of its shape."""
        mask = torch.empty(tensor.nbytes, dtype=torch.uint8)
        if tensor.numel():
            self.runtime.emu_initialised(argument(tensor), ctypes.c_size_t(tensor.nbytes), argument(mask))
        return mask.view(*tensor.shape, tensor.element_size()).bool().all(-1)

    def call(
        self,
        name: str,
        *args: object,
        seed: int = 0,
        eager_copies: bool = False,
        seconds: int = 60,
        record: bool = False,
        repeated_stores: bool = False,
        unpublished_mbarriers: bool = False,
    ) -> None:
        """Calls a driver's function. Raises Findings; `.counters` then has what was executed.

        seed: 0 runs threads in order and completes copies as late as possible, others shuffle both; eager_copies: TMA
        loads complete at issue; seconds: processor time of a launch after which it is given up; record: keeps `events`;
        repeated_stores: of PTX, a thread may store what another one stored there; unpublished_mbarriers: TMA loads may
        complete on mbarriers that no fence has published since their initialisation.
        """
        options = Options(seed, eager_copies, seconds, record, repeated_stores, unpublished_mbarriers)
        self.runtime.emu_configure(ctypes.byref(options))
        self.runtime.emu_use_ptx(ctypes.c_void_p(self.ptx._handle if self.ptx else None))
        self.library[name](*map(argument, args))
        self.counters = Counters.from_buffer_copy(self.runtime.emu_counters().contents)
        if reports := json.loads(self.runtime.emu_reports()):
            raise Findings(reports)

    def events(self) -> np.ndarray:
        """What threads did to barriers and to shared memory in the last call with ``record``: EVENT (events,)."""
        count = ctypes.c_size_t()
        address = self.runtime.emu_events(ctypes.byref(count))
        return np.frombuffer(ctypes.string_at(address, count.value * EVENT.itemsize), EVENT)


# --------------------------------------------------------------------------------------------------------- mutations


@dataclass(frozen=True)
class Mutation:
    """A fault to plant: `old`, which must occur once in csrc/`file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    def apply(self, csrc: Path) -> None:
        """Raises ValueError if the text is not there, or not only once."""
        path = csrc / self.file
        text = path.read_text()
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"mutation {self.name!r}: csrc/{self.file} holds its text {found} times, expected once")
        path.write_text(text.replace(self.old, self.new))


def mutant(driver: Path, mutation: Mutation, folder: Path) -> Path:
    """The driver's library with one fault planted in a copy of csrc, in `folder` (where findings name its lines)."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    mutation.apply(csrc)
    path = folder / f"{driver.stem}.so"
    compile_kernels(driver, csrc, path)
    return path
