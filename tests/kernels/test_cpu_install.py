"""Where there is no compiler the package installs without its CPU engine, and says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compilers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with the package, installed from its sources where no compiler is found, and an environment for it."""
    source, target, nothing = (tmp_path_factory.mktemp(name) for name in ("source", "target", "nothing"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in ("csrc", "tivtok", "tivtok_kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    unset = {"CXX", "CUDA_HOME", "PYTHONPATH", "TIVTOK_BUILD_CPU", "TIVTOK_BUILD_CUDA", "TIVTOK_CPU_VARIANT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"PATH": str(nothing)}
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    install = [sys.executable, "-m", "pip", "install", *options, str(source)]
    done = subprocess.run(install, env=environment, cwd=nothing, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target, environment | {"PYTHONPATH": str(target)}


def test_installs_without_a_compiler(installed):
    target, _ = installed
    assert (target / "tivtok_kernels" / "cpu" / "backend.py").exists() and not list(target.rglob("*.so"))


def test_doctor_says_why_there_is_no_engine_and_auto_does_without(installed):
    target, environment = installed
    call = (
        "import runpy, sys, torch, tivtok_kernels as t; from tivtok_kernels import backends, problem; "
        "q = torch.ones(20, 2, 16); t.sif_attention(q, q, q, t.SifLayout.uniform(1, 4, 2, 8)); "
        "print(t.__file__, backends.choose('attention', 'auto', problem.Problem(q.device, q.dtype, 16))); "
        "sys.argv = ['tivtok', 'doctor']; runpy.run_module('tivtok', run_name='__main__')"
    )
    wide = environment | {"COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", call], env=wide, cwd=target, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == f"{target}/tivtok_kernels/__init__.py sdpa"
    engine = [line for line in rest if line.strip().startswith(("CPU engine", "cpu"))]
    assert len(engine) == 2 and all("its library is not built" in line for line in engine), done.stdout
    assert all("compiler" in line for line in engine)


def test_a_compiler_that_is_asked_for_and_missing_is_an_error(installed):
    _, environment = installed
    command = [sys.executable, "setup.py", "build_ext"]
    done = subprocess.run(
        command, env=environment | {"TIVTOK_BUILD_CPU": "1"}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode and "TIVTOK_BUILD_CPU=1 needs a C++17 compiler: none found" in done.stderr
