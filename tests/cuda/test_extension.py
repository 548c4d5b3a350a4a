"""The CUDA extension as setup.py builds it: it loads without a GPU, its code is clean, launches are packed right."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oracle import make_case
from typer.testing import CliRunner

from benchmarks.machine_code import cuda as report
from tivtok_kernels import BackendUnavailable, SifLayout, backends, measured, sif_attention
from tivtok_kernels.cuda import backend, configs
from tivtok_kernels.measured import Entry, Record
from tivtok_kernels.problem import Call, Problem

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)


def setup_py(*args, **variables):
    return subprocess.run(
        [sys.executable, "setup.py", *args], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def library():
    """Built with the defaults, into a folder of its own; objects stay in build/cuda."""
    build = load("setup", ROOT / "setup.py")
    if build.find_nvcc() is None:
        pytest.skip("needs nvcc")
    folder = ROOT / "build" / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = setup_py("build_ext", "--build-lib", folder / "lib", TIVTOK_BUILD_CUDA="1", TIVTOK_CUDA_ARCHS="")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "lib").rglob("extension*.so")
    return path


@pytest.fixture(scope="session")
def extension(library):
    return load("extension", library)


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TIVTOK_BUILD_CUDA": "yes"}, "TIVTOK_BUILD_CUDA must be 0 or 1 or unset, got 'yes'"),
        ({"TIVTOK_BUILD_CUDA": "1", "CUDA_HOME": "/nowhere"}, "needs nvcc"),
    ],
)
def test_setup_refuses(variables, message):
    done = setup_py("--name", **variables)
    assert done.returncode != 0 and message in done.stderr


def test_setup_without_cuda_has_nothing_to_build():
    for variables in ({"TIVTOK_BUILD_CUDA": "0"}, {"TIVTOK_BUILD_CUDA": "", "CUDA_HOME": "/nowhere"}):
        variables |= {"TIVTOK_BUILD_CPU": "0"}  # built in tests/kernels/test_cpu_install.py
        done = setup_py("build_ext", **variables)
        assert done.returncode == 0 and "nvcc" not in done.stdout + done.stderr


def test_architectures(monkeypatch):
    build = load("setup", ROOT / "setup.py")
    monkeypatch.setenv("TIVTOK_CUDA_ARCHS", "80,86,90a")
    assert build.architectures() == ["80", "86", "90a"]
    monkeypatch.setenv("TIVTOK_CUDA_ARCHS", "sm_80")
    with pytest.raises(SystemExit, match="must be like"):
        build.architectures()


@pytest.mark.parametrize(
    ("line", "unwanted"),
    [
        ("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", False),
        ("    8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads", True),
        ("    8 bytes stack frame, 120 bytes spill stores, 0 bytes spill loads", True),
        ("ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum ...", True),
        ("ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized", True),
    ],
)
def test_what_ptxas_says_that_fails_a_build(line, unwanted):
    kernel = "ptxas info    : Compiling entry function 'x' for 'sm_80'"
    log = f"ptxas info    : 0 bytes gmem\n{kernel}\n{line}\nptxas info    : Used 9 registers"
    assert load("setup", ROOT / "setup.py").complaints(log) == ([kernel, line] if unwanted else [])


def test_objects_are_made_again_only_when_a_source_changed(tmp_path):
    is_stale = load("setup", ROOT / "setup.py").is_stale
    source, output = tmp_path / "kernel.h", tmp_path / "launch.o"
    source.touch()
    assert is_stale(output)
    output.touch()
    assert is_stale(output)  # nobody knows what it was made from
    output.with_suffix(".d").write_text(f"{output} : {source} \\\n    {ROOT / 'setup.py'}\n")  # as nvcc writes it
    assert not is_stale(output)
    os.utime(source, (2**32, 2**32))
    assert is_stale(output)
    source.unlink()
    assert is_stale(output)


@pytest.mark.emulator
def test_the_extension_loads_without_a_gpu(extension):
    assert extension.HAS_HOPPER
    for head_dim in (8, 32, 64, 72, 128):
        block_q, block_k, per_sm = extension.ampere_forward_tile(head_dim)
        assert block_q % 16 == block_k % 16 == 0 < per_sm
    with pytest.raises(ValueError, match="dtype must be bfloat16 or float16, got float32"):
        extension.AmpereForward(0, "float32", 1, 1, 64, extension.Work(0, 0, 0, 0, 128))


@pytest.mark.emulator
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_errors_become_exceptions(extension):
    with pytest.raises(RuntimeError, match="asking for the current device: "):
        extension.AmpereForward(0, "float16", 1, 1, 64, extension.Work(0, 0, 0, 0, 128))


@pytest.mark.emulator
def test_kernels_are_clean(library, tmp_path):
    """No spills, products and copies on the units that they were written for, on every architecture built for."""
    done = CliRunner().invoke(report.app, ["--library", str(library), "--json", str(tmp_path / "report.json")])
    kernels = json.loads((tmp_path / "report.json").read_text())["kernels"]
    assert {k["name"]: k["faults"] for k in kernels if k["faults"]} == {} and done.exit_code == 0
    families = {k["name"].split("<")[0] for k in kernels}
    assert families >= {"ampere::forward", "hopper::forward", "ampere::gradients", "merge::outputs", "merge::gradients"}
    assert {k["arch"] for k in kernels} == {"sm_80", "sm_90a"}
    assert all(k["total"]["utmaldg"] for k in kernels if k["name"].startswith("hopper::forward"))


def test_the_report_names_faults():
    counts = dict.fromkeys(report.Counts._fields, 0)
    kernel, loop = report.Kernel("ampere::forward<bf16>", "sm_80"), report.Counts(**counts | {"hmma": 1, "ldgsts": 1})
    clean = report.Resources(255, 0, loop, loop)
    assert report.faults(kernel, clean) == []
    assert report.faults(kernel, clean._replace(total=loop._replace(spill_loads=2))) == ["2 spills, 0 bytes of stack"]
    assert len(report.faults(kernel, clean._replace(loop=None))) == 2
    assert "products not on wgmma" in report.faults(kernel._replace(name="hopper::forward"), clean)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem(torch.device("cpu")), "NVIDIA GPUs, not on cpu tensors"),
        (Problem(GPU, torch.float32), "bfloat16 and float16, not for float32"),
        (Problem(GPU, torch.float16, 60), "multiple of 8 up to 128, got 60"),
        (Problem(GPU, torch.float16, 136), "multiple of 8 up to 128, got 136"),
    ],
)
def test_refusals_say_why(problem, reason):
    assert reason in backends.why_not("cuda", problem)


def test_an_extension_that_is_not_built_or_broken(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    def broken(name):
        raise ImportError("undefined symbol")

    for loader, reason in ((missing, backend.NOT_BUILT), (broken, "cannot be loaded: undefined symbol")):
        backend._load_error.cache_clear()
        monkeypatch.setattr(backend, "import_module", loader)
        assert reason in backend.why_not(Problem(GPU, torch.float16, 64))
    backend._load_error.cache_clear()


def test_asked_for_by_name_it_runs_or_raises():
    x = torch.randn(5, 1, 16, dtype=torch.bfloat16)
    with pytest.raises(BackendUnavailable, match=r'"cuda" cannot run this call: it runs on NVIDIA GPUs'):
        sif_attention(x, x, x, SifLayout.from_lengths([1], [[4]]), backend="cuda")


def test_auto_takes_it_only_where_a_measurement_says_so(monkeypatch):
    problem = Problem(GPU, torch.bfloat16, 64)
    assert "cuda" not in backends._auto_order("attention", problem)
    entry = Entry(measured.backend_question(problem), "", {"cuda": 1.0, "triton": 2.0}, {})
    monkeypatch.setattr(measured, "read", lambda device: Record({}, [entry]))
    assert backends._auto_order("attention", problem)[:2] == ("cuda", "triton")
    for other in (problem._replace(direction="backward"), problem._replace(head_dim=128)):
        assert "cuda" not in backends._auto_order("attention", other)


@pytest.mark.emulator
@pytest.mark.parametrize("has_hopper", [False, True])
@pytest.mark.parametrize("scope", ["clip", "broadcast"])
def test_launches_are_packed_in_the_order_of_the_binding(monkeypatch, extension, scope, has_hopper):
    """The extension's own plans, with a launch that records; a GPU is pretended."""
    launched, made = [], []

    class Plan:
        def __init__(self, **shape):
            made.append(shape)

        def launch(self, *args):
            launched.append(args)

    names = ("Work", "ampere_forward_tile", "hopper_forward_tile")
    fake = SimpleNamespace(
        HAS_HOPPER=has_hopper, AmpereForward=Plan, HopperForward=Plan, ForwardPlan=Plan,
        **{name: getattr(extension, name) for name in names},
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "tivtok_kernels.cuda.extension", fake)
    monkeypatch.setattr(sys.modules["tivtok_kernels.cuda"], "extension", fake, raising=False)
    launch = load("launch_under_test", ROOT / "tivtok_kernels" / "cuda" / "launch.py")
    monkeypatch.setattr(configs, "capability", lambda device: (9, 0))
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 64)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77, raising=False)

    layout = SifLayout.uniform(1, 64, 32, 64)  # TIV queries of scope "clip" are long enough to be split
    case = make_case(layout, scope, heads=4, kv_heads=2, head_dim=64).to(torch.bfloat16)
    inputs = list(case.inputs.values())
    tiv = tuple(inputs[3:]) or None
    out, lse = launch.forward(Call(*inputs[:3], tiv, layout, scope, -0.5))

    (shape,), ((scale, stream, addresses),) = made, launched
    assert (shape["dtype"], shape["heads"], shape["group"], shape["head_dim"]) == ("bfloat16", 4, 2, 64)
    assert ("order" in shape) == has_hopper
    assert (scale, stream, len(addresses)) == (-0.5, 77, 19)
    q, k, v = inputs[:3]
    expected = [n for x in (q, k, v, *(tiv or (k, v))) for n in (x.data_ptr(), *x.stride()[:2])]
    assert addresses[:17] == [*expected, out.data_ptr(), lse.data_ptr()]
    assert all(addresses[17:]) == (scope == "clip")


@pytest.mark.emulator
def test_rows_that_kernels_cannot_address_are_copied(monkeypatch, extension):
    monkeypatch.setitem(sys.modules, "tivtok_kernels.cuda.extension", extension)
    monkeypatch.setattr(sys.modules["tivtok_kernels.cuda"], "extension", extension, raising=False)
    addressable = load("launch_under_test", ROOT / "tivtok_kernels" / "cuda" / "launch.py").addressable
    qkv = torch.zeros(6, 3, 2, 64, dtype=torch.bfloat16)
    assert all(addressable(x) is x for x in (*qkv.unbind(1), qkv[:1, 0], qkv[:, 0, :1]))
    odd = torch.zeros(6, 2, 65, dtype=torch.bfloat16)[..., 1:]
    for x in (odd, qkv[:, 0, :1].expand(-1, 4, -1), qkv[:1, 0].expand(4, -1, -1)):
        assert addressable(x) is not x and torch.equal(addressable(x), x) and addressable(x).is_contiguous()
