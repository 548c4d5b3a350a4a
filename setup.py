"""Builds the libraries of csrc/; metadata is in pyproject.toml. Ninja does the work, in build/. None of it needs torch.

tivtok_kernels.cpu.engine, the CPU engine, a plain C library (docs/kernels/cpu.md):

TIVTOK_BUILD_CPU    1 builds it, 0 does not; unset: built where a C++17 compiler is found ($CXX, c++, g++ or clang++).

tivtok_kernels.cuda.extension (docs/cuda.md); its kernels are compiled by nvcc and the binding by the C++ compiler:

TIVTOK_BUILD_CUDA   1 builds it, 0 does not; unset: built where nvcc is found.
TIVTOK_CUDA_ARCHS   machine code to make, "80,90a" if unset; PTX for everything else from compute capability 8.0 on.
TIVTOK_STRICT_BUILD 1: a kernel that spills registers is an error, as in CI, and not a warning.

What is to be built and fails to build is an error.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

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
AMX_SOURCE = "cpu/amx.cpp"
AMX_FLAGS = [*X86_SOURCES["cpu/avx512.cpp"], "-mamx-tile", "-mamx-bf16"]  # GCC 11, Clang 11 and newer
AMX_PROBE = 'void clear() { asm volatile("tilezero %tmm0"); }\n'
PROBE = "#include <thread>\ntypedef float Vec __attribute__((vector_size(32)));\nvoid twice(Vec& x) { x += x; }\n"

HOST_FLAGS = ["-Xcompiler=-fPIC,-fvisibility=hidden"]

OLDEST_TOOLKIT = (12, 5)  # cudaGetDriverEntryPointByVersion
NVCC = "nvcc of CUDA 12.5 or newer, in PATH or in $CUDA_HOME/bin"

SPILLS = re.compile(r"[1-9]\d* bytes spill")
SERIALISED = re.compile(r"C75\d\d")  # wgmma that ptxas serialised (C7500 ...), register counts that it ignored (C7508)


def choice(variable: str) -> str:
    """The value of a variable, "0", "1" or "": empty counts as unset."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0 or 1 or unset, got {value!r}")
    return value


def wanted(variable: str, needs: str, found: object) -> bool:
    """Whether to build what the variable names."""
    value = choice(variable)
    if value == "1" and not found:
        raise SystemExit(f"{variable}=1 needs {needs}: none found")
    return value == "1" or (value == "" and bool(found))


def architectures() -> list[str]:
    archs = os.environ.get("TIVTOK_CUDA_ARCHS", "") or "80,90a"
    if not re.fullmatch(r"\d+[af]?(,\d+[af]?)*", archs):
        raise SystemExit(f'TIVTOK_CUDA_ARCHS must be like "80,90a", got {archs!r}')
    return archs.split(",")


@cache
def find_nvcc() -> str | None:
    """The nvcc in $CUDA_HOME/bin or in PATH, None if there is none or it is too old."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        return None
    said = run([nvcc, "--version"])
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None:
        raise SystemExit(f"{nvcc} --version must name a release, got {said!r}")
    if tuple(map(int, release.groups())) < OLDEST_TOOLKIT:
        print(f"{nvcc} is of CUDA {release[1]}.{release[2]}, left out: the CUDA kernels need {NVCC}", file=sys.stderr)
        return None
    return nvcc


@cache
def find_cxx() -> list[str] | None:
    """The command of a C++17 compiler with vector extensions, the first that compiles a probe."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        command = shlex.split(name)
        if shutil.which(command[0]) and compiles([*command, *CPU_FLAGS], PROBE):
            return command
    return None


def compiles(command: list[str], text: str) -> bool:
    """Whether a compiler makes an object of a source."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cpp"
        probe.write_text(text)
        done = subprocess.run([*command, "-c", probe, "-o", probe.with_suffix(".o")], capture_output=True)
    return done.returncode == 0


def run(command: list[object]) -> str:
    """What a program prints; SystemExit if it fails."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


class Edge(NamedTuple):
    """One step of a build: what ninja calls a build edge.

    Attributes:
        output, inputs: paths in the folder of the build, or absolute ones.
        command: makes the output, in the words of a shell.
        compiles: whether it leaves a list of the headers that it read in ``output``.d.
    """

    output: str
    inputs: tuple[str, ...]
    command: str
    compiles: bool = True


def compile_edge(command: list[object], source: str) -> Edge:
    """An object from a source of csrc/. What the compiler prints is kept in a log, and shown where it fails."""
    output, log = (f"{source.replace('/', '_')}.{kind}" for kind in ("o", "log"))
    line = joined([*command, "-MD", "-MF", f"{output}.d", "-c", CSRC / source, "-o", output])
    return Edge(output, (str(CSRC / source),), f"{line} > {log} 2>&1 || {{ cat {log}; exit 1; }}")


def joined(command: list[object]) -> str:
    return shlex.join(map(str, command))


def build(folder: Path, edges: list[Edge]) -> Path:
    """Let ninja make what has changed, all CPUs at work. Returns what the last edge makes.

    Ninja also makes anew what was made by another command. SystemExit if a step fails; ninja has printed why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["ninja_required_version = 1.5", "rule compile", "  command = $line", "  description = $out"]
    lines += ["  depfile = $out.d", "  deps = gcc", "rule link", "  command = $line", "  description = $out"]
    for edge in edges:
        rule = "compile" if edge.compiles else "link"
        lines += ["", f"build {_path(edge.output)}: {rule} {' '.join(map(_path, edge.inputs))}"]
        lines += [f"  line = {edge.command.replace('$', '$$')}"]
    file = folder / "build.ninja"
    text = "\n".join([*lines, f"default {_path(edges[-1].output)}", ""])
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    if subprocess.run([*find_ninja(), "-C", str(folder)]).returncode:
        raise SystemExit(f"{edges[-1].output} was not built: see above, or run ninja -v -C {folder}")
    return folder / edges[-1].output


def _path(name: str) -> str:
    """A path as ninja reads it."""
    return re.sub(r"([$: ])", r"$\1", name)


def find_ninja() -> list[str]:
    """The command of ninja: of its package, a requirement of the build, or one in PATH."""
    try:
        import ninja

        return [str(Path(ninja.BIN_DIR) / "ninja")]
    except ImportError:
        found = shutil.which("ninja")
    if found is None:
        raise SystemExit("the libraries of csrc/ are built by ninja, which was not found: pip install ninja")
    return [found]


def compile_kernel(nvcc: str, source: str, archs: list[str]) -> Edge:
    command: list[object] = [nvcc, "-std=c++20", "-O3", "-lineinfo", "-Xptxas=-v", "--threads=0", *HOST_FLAGS]
    command += [f"-I{CSRC}", *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs)]
    if source in KERNELS:
        command += ["-gencode=arch=compute_80,code=compute_80"]
    return compile_edge(command, source)


def complaints(log: str, unwanted: re.Pattern[str]) -> list[str]:
    """The lines of a log of ptxas that match, each after the line that names its kernel."""
    lines, kernel = [], ""
    for line in log.splitlines():
        if "Compiling entry function" in line:
            kernel = line
        elif unwanted.search(line):
            lines += [kernel, line]
    return lines


def judge(source: str, log: str, strict: bool) -> None:
    """SystemExit for wgmma that ptxas serialised, and with ``strict`` for spills, which else are printed."""
    if bad := complaints(log, SERIALISED):
        raise SystemExit("\n".join([f"ptxas about csrc/{source}:", *bad]))
    if spilled := complaints(log, SPILLS):
        said = "\n".join([f"ptxas about csrc/{source}, which costs some speed:", *spilled])
        if strict:
            raise SystemExit(said)
        print(f"warning: {said}")


def compile_binding(nvcc: str, archs: list[str]) -> Edge:
    """nvcc hands it to the C++ compiler and knows where CUDA's own headers are."""
    import pybind11

    command: list[object] = [nvcc, "-std=c++20", "-O2", *HOST_FLAGS, f"-I{CSRC}"]
    command += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    command += [f"-DTIVTOK_HAS_HOPPER={int('90a' in archs)}", f'-DTIVTOK_ARCHS="{",".join(archs)}"']
    return compile_edge(command, BINDING)


def build_cpu() -> Path:
    cxx = find_cxx()
    if cxx is None:
        raise SystemExit("tivtok_kernels.cpu.engine needs a C++17 compiler: none found")
    target = run([*cxx, "-dumpmachine"]).strip()
    x86 = target.startswith(("x86_64", "amd64"))
    sources = {**CPU_SOURCES, **(X86_SOURCES if x86 else {})}
    if amx := x86 and compiles([*cxx, *CPU_FLAGS, *AMX_FLAGS], AMX_PROBE):
        sources[AMX_SOURCE] = AMX_FLAGS
    stamp = runpy.run_path(str(ROOT / "tivtok_kernels" / "cpu" / "sources.py"))["stamp"](CSRC / "cpu")
    defines = [f"-DTIVTOK_X86={int(x86)}", f"-DTIVTOK_AMX={int(amx)}", f'-DTIVTOK_SOURCES="{stamp}"']
    edges = [compile_edge([*cxx, *CPU_FLAGS, *flags, *defines], source) for source, flags in sources.items()]
    objects = tuple(edge.output for edge in edges)
    command = joined([*cxx, "-shared", "-pthread", *objects, "-o", "engine.so"])
    return build(ROOT / "build" / "cpu" / target, [*edges, Edge("engine.so", objects, command, compiles=False)])


def build_cuda() -> Path:
    nvcc, archs = find_nvcc(), architectures()
    assert nvcc is not None
    folder = ROOT / "build" / "cuda" / "-".join(archs)
    hopper = {source: ["90a"] for source in HOPPER_KERNELS if "90a" in archs}
    kernels = {**hopper, **dict.fromkeys(KERNELS, archs)}  # the longest first
    edges = [compile_kernel(nvcc, source, targets) for source, targets in kernels.items()]
    edges.append(compile_binding(nvcc, archs))
    objects = tuple(edge.output for edge in edges)
    command = joined([nvcc, "-shared", "-nodlink", "-cudart=static", *objects, "-o", "extension.so"])
    library = build(folder, [*edges, Edge("extension.so", objects, command, compiles=False)])
    for source in kernels:
        log = folder / f"{source.replace('/', '_')}.log"
        judge(source, log.read_text(), strict=choice("TIVTOK_STRICT_BUILD") == "1")
    return library


class Build(build_ext):
    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        built = (build_cpu if ext.name == CPU_ENGINE else build_cuda)()
        part = library.with_suffix(".part")
        shutil.copy2(built, part)
        part.replace(library)


def main() -> None:
    extensions = []
    if wanted("TIVTOK_BUILD_CPU", "a C++17 compiler", find_cxx()):
        extensions.append(Extension(CPU_ENGINE, []))
    if wanted("TIVTOK_BUILD_CUDA", NVCC, find_nvcc()):
        extensions.append(Extension(CUDA_EXTENSION, []))
    setup(ext_modules=extensions, cmdclass={"build_ext": Build})


if __name__ == "__main__":
    main()
