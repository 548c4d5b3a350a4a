"""The CUDA extension as setup.py builds it: it loads without a GPU, its code is clean, launches are packed right."""

import ast
import ctypes
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
        done = setup_py(
            "build_ext",
            "--build-lib",
            folder / "lib",
            TIVTOK_BUILD_CUDA="1",
            TIVTOK_CUDA_ARCHS="",
            TIVTOK_STRICT_BUILD="1",
        )
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


SPILL = "    8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads"
KERNEL = "ptxas info    : Compiling entry function 'x' for 'sm_80'"


@pytest.mark.parametrize(
    ("line", "fails", "fails_strictly"),
    [
        ("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", False, False),
        (SPILL, False, True),
        ("    8 bytes stack frame, 120 bytes spill stores, 0 bytes spill loads", False, True),
        (
            "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum ...",
            True,
            True,
        ),
        ("ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized", True, True),
    ],
)
def test_what_ptxas_says_that_fails_a_build(capsys, line, fails, fails_strictly):
    judge = load("setup", ROOT / "setup.py").judge
    log = f"ptxas info    : 0 bytes gmem\n{KERNEL}\n{line}\nptxas info    : Used 9 registers"
    for strict, wrong in ((False, fails), (True, fails_strictly)):
        if wrong:
            with pytest.raises(SystemExit, match=r"ptxas about csrc/a\.cu") as error:
                judge("a.cu", log, strict)
            assert error.value.code.splitlines()[1:] == [KERNEL, line]
        else:
            judge("a.cu", log, strict)
            printed = capsys.readouterr().out
            assert (line in printed and "warning" in printed) == fails_strictly


def test_a_toolkit_that_is_too_old_is_left_out_or_an_error(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    variables = {"TIVTOK_BUILD_CPU": "0", "CUDA_HOME": str(tmp_path)}
    done = setup_py("build_ext", **variables, TIVTOK_BUILD_CUDA="")
    assert done.returncode == 0 and "is of CUDA 12.4, left out: the CUDA kernels need nvcc of CUDA 12.5" in done.stderr
    done = setup_py("build_ext", **variables, TIVTOK_BUILD_CUDA="1")
    assert done.returncode and "TIVTOK_BUILD_CUDA=1 needs nvcc of CUDA 12.5 or newer" in done.stderr


def test_ninja_makes_what_changed_and_shows_what_fails(tmp_path, capfd):
    """Its folder has a space, a colon and a dollar in its name, as folders of users do."""
    setup = load("setup", ROOT / "setup.py")
    folder, header = tmp_path / "a b:$c", tmp_path / "x y.h"
    header.write_text("one")
    made = tmp_path / "made"
    escaped = str(header).replace(" ", "\\ ")
    listing = f"echo 'object.o: {escaped}' > object.o.d"
    compiles = f"echo once >> {made} && cat '{header}' > object.o && {listing}"
    edges = [
        setup.Edge("object.o", (), compiles),
        setup.Edge("library.so", ("object.o",), "cp object.o library.so", compiles=False),
    ]
    assert setup.build(folder, edges).read_text() == "one"
    setup.build(folder, edges)
    assert made.read_text() == "once\n"
    header.write_text("another")
    os.utime(header, (2**31, 2**31))
    assert setup.build(folder, edges).read_text() == "another"
    assert made.read_text() == "once\nonce\n"
    edges[0] = edges[0]._replace(command=f"{compiles} && true")  # other flags
    setup.build(folder, edges)
    assert len(made.read_text().splitlines()) == 3
    failing = setup.compile_edge(["sh", "-c", "echo what is wrong; exit 1"], "a.cu")._replace(inputs=())
    with pytest.raises(SystemExit, match=r"a.cu.o was not built"):
        setup.build(folder, [failing])
    assert "what is wrong" in capfd.readouterr().out


@pytest.mark.emulator
def test_the_extension_loads_without_a_gpu(extension):
    assert extension.HAS_HOPPER
    for head_dim in (8, 32, 64, 72, 128):
        tile = extension.ampere_forward_tile(head_dim)
        assert tile.block_q % 16 == tile.block_k % 16 == 0 < tile.blocks_per_sm
    tiles = [extension.gradient_tile("hopper", owner, 64) for owner in (extension.Owner.queries, extension.Owner.keys)]
    assert [(tile.owned, tile.walked, tile.blocks_per_sm) for tile in tiles] == [(128, 128, 1), (128, 64, 1)]
    with pytest.raises(ValueError, match="head_dim must be 64 or 128, got 72"):
        extension.hopper_forward_tile(72)
    with pytest.raises(ValueError, match="engine must be ampere or hopper, got volta"):
        extension.gradient_tile("volta", extension.Owner.keys, 64)


SHAPE = {"device": 0, "dtype": "float16", "heads": 6, "group": 3, "head_dim": 64}
WORK = {"tiles": 1 << 40, "num_tiles": 2, "merges": 3 << 40, "num_merges": 4, "block": 128}


@pytest.mark.emulator
def test_structures_are_filled_by_name(extension):
    """Each field from the argument of its name, and nothing by position."""
    structures = {
        "Shape": SHAPE,
        "Work": WORK,
        "RowCounts": {"q": 1 << 40, "k": 2, "tiv": 3},
        "Shares": {"order": 1, "bounds": 2, "blocks": 3},
    }
    for name, fields in structures.items():
        made = getattr(extension, name)(**fields)
        assert {field: getattr(made, field) for field in fields} == fields
        with pytest.raises(TypeError):
            getattr(extension, name)(*fields.values())
    first = next(iter(WORK))
    for changed, message in (
        ({n: x for n, x in WORK.items() if n != first}, "Work needs the argument tiles"),
        (WORK | {"more": 1}, "Work has no argument more"),
        (WORK | {"num_tiles": 1.5}, "Work: argument num_tiles does not take 1.5"),
        (WORK | {"num_tiles": 1 << 31}, "Work: argument num_tiles does not take 2147483648"),
        (WORK | {"tiles": None}, "Work: argument tiles does not take None"),
    ):
        with pytest.raises(TypeError, match=message):
            extension.Work(**changed)
    with pytest.raises(ValueError, match="dtype must be bfloat16 or float16, got float32"):
        extension.Shape(**SHAPE | {"dtype": "float32"})


@pytest.mark.emulator
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_errors_become_exceptions(extension):
    with pytest.raises(RuntimeError, match="asking for the current device: "):
        extension.AmpereForward(extension.Shape(**SHAPE), extension.Work(**WORK))
    driver, toolkit = extension.versions()
    assert driver == 0 and toolkit >= 12050  # no driver here
    assert extension.ARCHITECTURES == "80,90a"


ONE_ERROR = """
#include "common/host.h"
static cudaError_t last = cudaErrorInvalidValue;
extern "C" cudaError_t cudaGetLastError() {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}
extern "C" const char* cudaGetErrorString(cudaError_t) { return "refused"; }
extern "C" int left() {
    try {
        check(last, "asking");
        return -1;
    } catch (const std::runtime_error&) {
        return cudaGetLastError();
    }
}
"""


@pytest.mark.emulator
def test_an_error_is_not_left_for_the_next_launch_to_find(tmp_path):
    nvcc = load("setup", ROOT / "setup.py").find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    source, path = tmp_path / "error.cpp", tmp_path / "error.so"
    source.write_text(ONE_ERROR)
    flags = ["-std=c++20", "-cudart=none", "-shared", "-Xcompiler=-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([nvcc, *flags, "-o", path, source], check=True)
    assert ctypes.CDLL(str(path)).left() == 0


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


@pytest.mark.parametrize(
    ("driver", "toolkit", "archs", "capability", "reason"),
    [
        (13000, 13000, "80,90a", (9, 0), None),
        (13000, 13020, "80,90a", (8, 9), None),  # machine code runs under older drivers of the same major version
        (12080, 13000, "80,90a", (9, 0), "was built by CUDA 13.0, and the driver is of CUDA 12.8"),
        (0, 12050, "80", (8, 0), "was built by CUDA 12.5, and the driver is of CUDA 0.0"),
        (13020, 13020, "80,90a", (12, 0), None),
        (13000, 13020, "80,90a", (12, 0), "has machine code for 80,90a, not for compute capability 12.0, and a driver"),
        (13000, 13020, "90a", (8, 0), "cannot compile the PTX of CUDA 13.2"),
        (13000, 13020, "86,90a", (8, 0), "cannot compile the PTX"),
        (13000, 13020, "90a,120", (12, 1), None),
    ],
)
def test_drivers_and_architectures(monkeypatch, driver, toolkit, archs, capability, reason):
    fake = SimpleNamespace(versions=lambda: (driver, toolkit), ARCHITECTURES=archs)
    monkeypatch.setattr(backend, "import_module", lambda name: fake)
    monkeypatch.setattr(backend, "gpu_limit", lambda device: None)
    monkeypatch.setattr(configs, "capability", lambda device: capability)
    backend._driver_limit.cache_clear()
    said = backend.why_not(Problem(GPU, torch.float16, 64))
    backend._driver_limit.cache_clear()
    backend._load_error.cache_clear()
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize("method", ["plan_call", "forward", "backward"])
def test_the_device_of_the_tensors_is_made_current(monkeypatch, method):
    inside = []

    class OnDevice:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            inside.append(self.tensor)

        def __exit__(self, *error):
            inside.append("left")

    launch = SimpleNamespace(**{method: lambda *args: inside.append("launched")})
    monkeypatch.setattr(torch.cuda, "device_of", OnDevice)
    monkeypatch.setattr(backend, "_launch", lambda name: launch)
    call = SimpleNamespace(q=object())
    arguments = {"plan_call": ("forward",), "forward": (), "backward": (None,) * 4}[method]
    getattr(backend, method)(call, *arguments)
    assert inside == [call.q, "launched", "left"]


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
def test_launches_pass_the_arguments_of_the_binding(monkeypatch, extension, scope, has_hopper):
    """The extension's own plans, with a launch that records; a GPU is pretended."""
    launched, made = [], []

    class Plan:
        def __init__(self, *structures):
            made.append(structures)

        def launch(self, stream, arguments):
            launched.append((stream, arguments))

    names = ("Work", "RowCounts", "Shares", "ampere_forward_tile", "hopper_forward_tile")
    fake = SimpleNamespace(
        HAS_HOPPER=has_hopper, AmpereForward=Plan, HopperForward=Plan, ForwardPlan=Plan,
        Shape=lambda **shape: extension.Shape(**shape | {"device": 0}),
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

    (structures,), ((stream, arguments),) = made, launched
    shape, work, *more = structures
    assert (shape.dtype, shape.heads, shape.group, shape.head_dim) == ("bfloat16", 4, 2, 64)
    tile = (extension.hopper_forward_tile if has_hopper else extension.ampere_forward_tile)(64)
    assert work.num_tiles > 0 and (work.num_merges > 0) == (scope == "clip") and work.block == tile.block_q
    assert [type(x).__name__ for x in more] == ["RowCounts", "Shares"] * has_hopper
    if more:
        rows, share = more
        assert (rows.q, rows.k, rows.tiv) == (len(inputs[0]), len(inputs[1]), len((tiv or inputs[1:])[0]))
        assert share.order and share.bounds and 0 < share.blocks <= 64
    assert sorted(arguments) == sorted(extension.FORWARD_ARGUMENTS)
    assert (stream, arguments["scale"]) == (77, -0.5)
    k_tiv, v_tiv = tiv or inputs[1:3]
    tensors = dict(zip(("q", "k", "v", "k_tiv", "v_tiv"), (*inputs[:3], k_tiv, v_tiv), strict=True))
    for name, x in tensors.items():
        assert arguments[name] == (x.data_ptr(), *x.stride()[:2])
    assert (arguments["out"], arguments["lse"]) == (out.data_ptr(), lse.data_ptr())
    assert [bool(arguments[name]) for name in ("part_out", "part_lse")] == [scope == "clip"] * 2


@pytest.mark.emulator
def test_the_stub_states_the_arguments_of_the_binding(extension):
    stub = ast.parse((ROOT / "tivtok_kernels" / "cuda" / "extension.pyi").read_text())
    stated = {
        node.name: {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
        for node in stub.body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Arguments")
    }
    bound = {"ForwardArguments": extension.FORWARD_ARGUMENTS, "BackwardArguments": extension.BACKWARD_ARGUMENTS}
    assert stated == {name: set(fields) for name, fields in bound.items()}


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
