"""Builds the CUDA extension tivtok_kernels.cuda.extension; metadata is in pyproject.toml. Two variables (docs/cuda.md):

TIVTOK_BUILD_CUDA   1 builds it, 0 does not; unset: built where nvcc is found. What fails to build is an error.
TIVTOK_CUDA_ARCHS   machine code to make, "80,90a" if unset; PTX for everything else from compute capability 8.0 on.

Kernels are compiled by nvcc and the binding by the C++ compiler, without torch. Objects are kept in build/cuda.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

KERNELS = [
    "forward/ampere/launch.cu",
    "merge/launch.cu",
    "backward/ampere/launch.cu",
    "backward/statistics/launch.cu",
]
HOPPER_KERNELS = ["forward/hopper/launch.cu", "backward/hopper/launch.cu"]  # wgmma and TMA: for sm_90a alone
BINDING = "binding.cpp"

HOST_FLAGS = ["-Xcompiler=-fPIC,-fvisibility=hidden"]

# Spills, wgmma that ptxas serialised (C7500 and the like), register counts that it ignored (C7508).
UNWANTED = re.compile(r"[1-9]\d* bytes spill|C75\d\d")


def wanted() -> bool:
    """Whether to build the extension; empty counts as unset."""
    choice = os.environ.get("TIVTOK_BUILD_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"TIVTOK_BUILD_CUDA must be 0 or 1 or unset, got {choice!r}")
    if choice == "1" and not find_nvcc():
        raise SystemExit("TIVTOK_BUILD_CUDA=1 needs nvcc, in PATH or in $CUDA_HOME/bin: none found")
    return choice == "1" or (choice == "" and find_nvcc() is not None)


def architectures() -> list[str]:
    archs = os.environ.get("TIVTOK_CUDA_ARCHS", "") or "80,90a"
    if not re.fullmatch(r"\d+[af]?(,\d+[af]?)*", archs):
        raise SystemExit(f'TIVTOK_CUDA_ARCHS must be like "80,90a", got {archs!r}')
    return archs.split(",")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


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


class BuildCuda(build_ext):
    def build_extension(self, ext: Extension) -> None:
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

        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        run([nvcc, "-shared", "-nodlink", "-cudart=static", *objects, "-o", library.with_suffix(".part")])
        library.with_suffix(".part").replace(library)


if __name__ == "__main__":
    extensions = [Extension("tivtok_kernels.cuda.extension", [])] if wanted() else []
    setup(ext_modules=extensions, cmdclass={"build_ext": BuildCuda})
