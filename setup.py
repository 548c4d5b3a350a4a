"""Builds the libraries of csrc/; metadata is in pyproject.toml. Objects are kept in build/. None of it needs torch.

tivtok_kernels.cpu.engine, the CPU engine, a plain C library (docs/kernels/cpu.md):

TIVTOK_BUILD_CPU    1 builds it, 0 does not; unset: built where a C++17 compiler is found ($CXX, c++, g++ or clang++).

tivtok_kernels.cuda.extension (docs/cuda.md); its kernels are compiled by nvcc and the binding by the C++ compiler:

TIVTOK_BUILD_CUDA   1 builds it, 0 does not; unset: built where nvcc is found.
TIVTOK_CUDA_ARCHS   machine code to make, "80,90a" if unset; PTX for everything else from compute capability 8.0 on.

What is to be built and fails to build is an error.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

CPU_ENGINE = "tivtok_kernels.cpu.engine"
CUDA_EXTENSION = "tivtok_kernels.cuda.extension"

KERNELS = [
    "forward/ampere/launch.cu",
    "merge/launch.cu",
    "backward/ampere/launch.cu",
    "backward/statistics/launch.cu",
]
HOPPER_KERNELS = ["forward/hopper/launch.cu", "backward/hopper/launch.cu"]  # wgmma and TMA: for sm_90a alone
BINDING = "binding.cpp"

# The CPU engine: a source per instruction set with what it needs of the compiler. Contracting a * b + c is all that the
# compiler may do to arithmetic: NaN and infinity must survive.
CPU_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
CPU_FLAGS += ["-pthread", "-Wno-psabi"]
CPU_SOURCES = {"cpu/engine.cpp": [], "cpu/portable.cpp": []}
X86_SOURCES = {
    "cpu/avx2.cpp": ["-mavx2", "-mfma"],
    "cpu/avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
}
PROBE = "#include <thread>\ntypedef float Vec __attribute__((vector_size(32)));\nvoid twice(Vec& x) { x += x; }\n"

HOST_FLAGS = ["-Xcompiler=-fPIC,-fvisibility=hidden"]

# Spills, wgmma that ptxas serialised (C7500 and the like), register counts that it ignored (C7508).
UNWANTED = re.compile(r"[1-9]\d* bytes spill|C75\d\d")


def wanted(variable: str, needs: str, found: object) -> bool:
    """Whether to build what the variable names; empty counts as unset."""
    choice = os.environ.get(variable, "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0 or 1 or unset, got {choice!r}")
    if choice == "1" and not found:
        raise SystemExit(f"{variable}=1 needs {needs}: none found")
    return choice == "1" or (choice == "" and bool(found))


def architectures() -> list[str]:
    archs = os.environ.get("TIVTOK_CUDA_ARCHS", "") or "80,90a"
    if not re.fullmatch(r"\d+[af]?(,\d+[af]?)*", archs):
        raise SystemExit(f'TIVTOK_CUDA_ARCHS must be like "80,90a", got {archs!r}')
    return archs.split(",")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


@cache
def find_cxx() -> list[str] | None:
    """The command of a C++17 compiler with vector extensions, the first that compiles a probe."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cpp"
        probe.write_text(PROBE)
        for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
            command = shlex.split(name)
            if shutil.which(command[0]) is None:
                continue
            output = probe.with_suffix(".o")
            done = subprocess.run([*command, *CPU_FLAGS, "-c", probe, "-o", output], capture_output=True)
            if done.returncode == 0:
                return command
    return None


def run(command: list[object]) -> str:
    """What a compiler prints; SystemExit if it fails."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def compile_kernel(nvcc: str, source: str, archs: list[str], output: Path) -> None:
    command = [nvcc, "-std=c++20", "-O3", "-lineinfo", "-Xptxas=-v", *HOST_FLAGS, f"-I{CSRC}"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    if source in KERNELS:
        command += ["-gencode=arch=compute_80,code=compute_80"]
    if bad := complaints(compile_object(command, source, output)):
        output.unlink()
        raise SystemExit("\n".join([f"ptxas about csrc/{source}:", *bad]))


def complaints(log: str) -> list[str]:
    """The unwanted lines of a log of ptxas, each after the line that names its kernel."""
    lines, kernel = [], ""
    for line in log.splitlines():
        if "Compiling entry function" in line:
            kernel = line
        elif UNWANTED.search(line):
            lines += [kernel, line]
    return lines


def compile_binding(nvcc: str, source: str, archs: list[str], output: Path) -> None:
    """nvcc hands it to the C++ compiler and knows where CUDA's own headers are."""
    import pybind11

    command = [nvcc, "-std=c++20", "-O2", *HOST_FLAGS, f"-I{CSRC}"]
    command += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    command += [f"-DTIVTOK_HAS_HOPPER={int('90a' in archs)}"]
    compile_object(command, source, output)


def compile_object(command: list[object], source: str, output: Path) -> str:
    """What the compiler prints. The files that the object was made from are listed beside it."""
    part = output.with_suffix(".part")
    log = run([*command, "-MD", "-MF", output.with_suffix(".d"), "-c", CSRC / source, "-o", part])
    part.replace(output)
    return log


def is_stale(output: Path) -> bool:
    made_from = output.with_suffix(".d")
    if not output.exists() or not made_from.exists():
        return True
    names = made_from.read_text().partition(":")[2].replace("\\\n", " ").split()
    used = [Path(name) for name in (__file__, *names)]
    made = output.stat().st_mtime
    return any(not path.exists() or path.stat().st_mtime > made for path in used)


def build_cpu(library: Path) -> None:
    cxx = find_cxx()
    if cxx is None:
        raise SystemExit("tivtok_kernels.cpu.engine needs a C++17 compiler: none found")
    target = run([*cxx, "-dumpmachine"]).strip()
    x86 = target.startswith(("x86_64", "amd64"))
    stamp = runpy.run_path(str(ROOT / "tivtok_kernels" / "cpu" / "sources.py"))["stamp"](CSRC / "cpu")
    folder = ROOT / "build" / "cpu" / target / stamp.replace(" ", "-")
    if not folder.exists():  # objects of other sources
        shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for source, flags in {**CPU_SOURCES, **(X86_SOURCES if x86 else {})}.items():
        command = [*cxx, *CPU_FLAGS, *flags, f"-DTIVTOK_X86={int(x86)}", f'-DTIVTOK_SOURCES="{stamp}"']
        jobs.append((command, source, folder / f"{Path(source).stem}.o"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for work in [pool.submit(compile_object, *job) for job in jobs if is_stale(job[-1])]:
            work.result()
    run([*cxx, "-shared", "-pthread", *(output for *_, output in jobs), "-o", library.with_suffix(".part")])


class Build(build_ext):
    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        (build_cpu if ext.name == CPU_ENGINE else build_cuda)(library)
        library.with_suffix(".part").replace(library)


def build_cuda(library: Path) -> None:
    nvcc, archs = find_nvcc(), architectures()
    folder = ROOT / "build" / "cuda" / "-".join(archs)
    folder.mkdir(parents=True, exist_ok=True)
    hopper = [source for source in HOPPER_KERNELS if "90a" in archs]
    jobs = [(compile_kernel, source, ["90a"]) for source in hopper]  # the longest first
    jobs += [(compile_kernel, source, archs) for source in KERNELS]
    jobs += [(compile_binding, BINDING, archs)]

    objects = [folder / f"{source.replace('/', '_')}.o" for _, source, _ in jobs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = [
            pool.submit(compiler, nvcc, source, targets, output)
            for (compiler, source, targets), output in zip(jobs, objects, strict=True)
            if is_stale(output)
        ]
    for job in work:
        job.result()

    run([nvcc, "-shared", "-nodlink", "-cudart=static", *objects, "-o", library.with_suffix(".part")])


if __name__ == "__main__":
    extensions = []
    if wanted("TIVTOK_BUILD_CPU", "a C++17 compiler", find_cxx()):
        extensions.append(Extension(CPU_ENGINE, []))
    if wanted("TIVTOK_BUILD_CUDA", "nvcc, in PATH or in $CUDA_HOME/bin", find_nvcc()):
        extensions.append(Extension(CUDA_EXTENSION, []))
    setup(ext_modules=extensions, cmdclass={"build_ext": Build})
