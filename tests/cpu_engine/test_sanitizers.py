"""The CPU engine under AddressSanitizer and UndefinedBehaviorSanitizer, in a program of its own (driver.cpp).

It is also where the tile shapes of AVX-512 run: the same source, 16 lanes wide, compiled for the instructions at hand.
So are the kernels for AMX, whose tile registers are then arrays and products loops (csrc/cpu/matrix.h).
And where the engine runs on an Arm processor's NEON, where Debian's g++-aarch64-linux-gnu and qemu-user-static are.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_within_budget, budgets, make_case, run
from test_ranges import check, dense
from torch import Tensor

from tivtok_kernels import RangeLayout, SifLayout
from tivtok_kernels.cpu import backend, plan
from tivtok_kernels.error_budgets import Arithmetic

pytestmark = pytest.mark.compilers

HERE, SOURCES = Path(__file__).parent, Path(__file__).parents[2] / "csrc" / "cpu"
LAYOUT = SifLayout.from_lengths([60, 0, 7, 131], [[140, 0, 9], [7, 13], [], [20]])
WIDE = ["-mavx2", "-mfma"] if "AVX" in torch.backends.cpu.get_cpu_capability() else []


@pytest.fixture(scope="session", params=["sanitizers", "arm"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the driver."""
    folder = tmp_path_factory.mktemp("cpu_engine")
    flags = ["-std=c++17", "-Wno-psabi", "-pthread", "-DTIVTOK_X86=0", f"-I{SOURCES}", "-ffp-contract=fast"]
    if request.param == "arm":
        compiler, emulator = map(shutil.which, ("aarch64-linux-gnu-g++", "qemu-aarch64-static"))
        if compiler is None or emulator is None:
            pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64-static")
        command, flags, wide = [emulator], [compiler, *flags, "-O3", "-static"], []
    else:
        command, wide = [], [*WIDE, "-fno-sanitize=undefined"]
        flags = ["g++", *flags, "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    jobs = [
        (SOURCES / "avx512.cpp", wide),
        (SOURCES / "amx.cpp", wide),
        (SOURCES / "portable.cpp", []),
        (HERE / "driver.cpp", []),
    ]

    def compile_one(job: tuple[Path, list[str]]) -> Path:
        source, more = job
        output = folder / f"{source.stem}.o"
        subprocess.run([*flags, *more, "-c", source, "-o", output], check=True)
        return output

    try:
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, jobs))
        subprocess.run([*flags, *objects, "-o", folder / "driver"], check=True)
    except FileNotFoundError:
        pytest.skip("needs g++")
    return [*command, str(folder / "driver")]


class Recorder:
    """Stands in for the library: sends each call to the driver and brings the results back into the tensors."""

    def __init__(self, driver: list[str], variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver, self.variant, self.buffers, self.calls = driver, variant, {}, 0
        monkeypatch.setattr(backend, "_run", self.run)
        for name in ("_strided", "_addresses"):
            monkeypatch.setattr(backend, name, self.remembering(getattr(backend, name)))
        for name in ("make_plan", "plan_gradients"):
            monkeypatch.setattr(backend, name, self.planning(getattr(plan, name)))
        monkeypatch.setattr(backend, "_load_error", lambda: None)
        LAYOUT.calls.clear()  # plans of the kernels that this stands in for, or of another one's buffers

    def remember(self, *tensors: Tensor | None) -> None:
        for x in tensors:
            if x is not None and x.numel():
                assert x.is_contiguous()
                self.buffers[x.data_ptr()] = x

    def remembering(self, function):
        def call(*tensors):
            self.remember(*tensors)
            return function(*tensors)

        return call

    def planning(self, function):
        def call(*arguments):
            self.buffers.clear()
            made = function(*arguments[:-1], min(arguments[-1], 96))  # small units
            self.remember(*(x for x in made if isinstance(x, Tensor)))
            return made

        return call

    def run(self, name: str, fields: tuple[int, ...], scale: float, most_threads: int) -> None:
        order = {address: -1 - i for i, address in enumerate(self.buffers)}
        tensors = list(self.buffers.values())
        bytes_of = [x.detach().view(torch.uint8).numpy().tobytes() for x in tensors]
        numbers = [len(fields), *(order.get(field, field) for field in fields), len(tensors), *map(len, bytes_of)]
        call = np.array(numbers, np.int64).tobytes() + b"".join(bytes_of)
        command = [*self.driver, self.variant, name.removeprefix("tivtok_cpu_"), str(scale), "3"]
        done = subprocess.run(command, input=call, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        results, at = done.stdout, 0
        for x, data in zip(tensors, bytes_of, strict=True):
            part = np.frombuffer(results[at : at + len(data)], np.uint8).copy()
            x.detach().view(torch.uint8).copy_(torch.from_numpy(part).view(x.view(torch.uint8).shape))
            at += len(data)
        self.calls += 1


@pytest.mark.parametrize("variant", ["portable", "avx512", "amx"])
@pytest.mark.parametrize("scope", ["clip", "tiv", "broadcast"])
def test_no_access_out_of_bounds(driver, variant, scope, monkeypatch):
    monkeypatch.setattr(plan, "PAIRS_PER_UNIT", 3000)
    plan.make_plan.cache_clear()
    kinds = [(torch.float32, 40), (torch.bfloat16, 64), (torch.float16, 16)]
    if variant == "amx":
        kinds = [(torch.bfloat16, head_dim) for head_dim in (64, 40, 16, 7)]
    for dtype, head_dim in kinds:
        case = make_case(LAYOUT, scope, heads=2, kv_heads=1, head_dim=head_dim).to(dtype)
        truth, budget = run(case.to(torch.float64), "reference"), budgets(case, Arithmetic.of("cpu", dtype))
        with monkeypatch.context() as patch:
            recorder = Recorder(driver, variant, patch)
            got = run(case, "cpu")
        assert recorder.calls == 2
        LAYOUT.calls.clear()
        for name in truth:
            assert_within_budget(f"{name} in {dtype}", got[name], truth[name], budget[name])
    plan.make_plan.cache_clear()


@pytest.mark.parametrize("variant", ["portable", "avx512", "amx"])
def test_no_access_out_of_bounds_under_two_ranges(driver, variant, monkeypatch):
    runs = [(100, (0, 150), (150, 290)), (3, (0, 150), (0, 0)), (2, (290, 300), (20, 200)), (1, (0, 0), (300, 600))]
    layout = RangeLayout.from_runs(runs, 603)
    with monkeypatch.context() as patch:
        recorder = Recorder(driver, variant, patch)
        check(layout, dense(runs, 603), "cpu", head_dim=24, dtype=torch.bfloat16 if variant == "amx" else torch.float32)
    assert recorder.calls == 2
