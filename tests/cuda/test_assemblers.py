"""Every ptxas that is here assembles every kernel without a spill: what a user's toolkit, or driver, makes of them.

nvcc's own assembler is one; triton's wheel, which the tests need anyway, brings two more, of other CUDA versions;
wheels of nvidia-cuda-nvcc are taken where they are installed.
"""

import importlib.util
import re
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from cuda_emulator import CSRC, run_tool

SETUP = SimpleNamespace(**runpy.run_path(str(CSRC.parent / "setup.py")))
NVCC = SETUP.find_nvcc()

# The version of PTX that the oldest toolkit served (12.5) knows: kernels need nothing newer.
ISA = "8.5"

# Source, PTX, machine code: what setup.py makes by default, and what drivers of newer GPUs make of its PTX.
UNITS = [(source, "80", target) for source in SETUP.KERNELS for target in ("80", "86", "120")]
UNITS += [(source, "90a", "90a") for source in (*SETUP.HOPPER_KERNELS, *SETUP.KERNELS)]


def assemblers() -> dict[str, Path]:
    """By version."""
    folders = [Path(NVCC).resolve().parent] if NVCC else []
    if spec := importlib.util.find_spec("triton"):
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    if spec := importlib.util.find_spec("nvidia"):  # of wheels; it has no file of its own
        folders += [folder for root in spec.submodule_search_locations for folder in Path(root).glob("*/bin")]
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("ptxas*"))):
        if version := re.search(r"release (\d+\.\d+)", run_tool([path, "--version"])):
            found.setdefault(version[1], path)
    return found


def complaints(ptxas: Path, ptx: Path, arch: str) -> list[str]:
    """Spills and serialised wgmma, as setup.py finds them in what ptxas says."""
    command = [ptxas, "-v", "-O3", f"--gpu-name=sm_{arch}", ptx, "-o", ptx.with_suffix(".cubin")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode:
        return [said]
    assert "Compiling entry function" in said
    return [line for unwanted in (SETUP.SPILLS, SETUP.SERIALISED) for line in SETUP.complaints(said, unwanted)]


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """The PTX of each source for each version of it, made once."""
    folder, made = tmp_path_factory.mktemp("ptx"), {}

    def text_of(source: str, arch: str) -> str:
        if (source, arch) not in made:
            ptx = folder / "unit.ptx"
            flags = ["-std=c++20", "-O3", f"-arch=compute_{arch}", f"-I{CSRC}", "-ptx"]
            run_tool([NVCC, *flags, "-o", ptx, CSRC / source])
            made[source, arch] = re.sub(r"(?m)^\.version .*$", f".version {ISA}", ptx.read_text(), count=1)
        return made[source, arch]

    return text_of


@pytest.mark.emulator
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize(("source", "ptx", "arch"), UNITS, ids=["-".join(unit) for unit in UNITS])
def test_every_assembler_takes_every_kernel(texts, tmp_path, source, ptx, arch):
    unit = tmp_path / "unit.ptx"
    unit.write_text(texts(source, ptx))
    assert {version: found for version, path in assemblers().items() if (found := complaints(path, unit, arch))} == {}


@pytest.mark.emulator
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_spills_are_found(tmp_path):
    """A kernel that holds 64 numbers at once, in 32 registers."""
    source, ptx = tmp_path / "unit.cu", tmp_path / "unit.ptx"
    source.write_text(
        "__global__ void __maxnreg__(32) f(float* p) { float x[64]; for (float& y : x) y = p[&y - x];"
        " __syncthreads(); for (float& y : x) p[&y - x] = y * x[63 - (&y - x)]; }"
    )
    run_tool([NVCC, "-arch=compute_80", "-ptx", "-o", ptx, source])
    assert complaints(Path(NVCC).resolve().parent / "ptxas", ptx, "80")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, for its assemblers")
def test_there_are_several_assemblers():
    assert len(assemblers()) >= 2
