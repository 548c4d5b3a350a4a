"""Where there is no GPU, Triton kernels run in the interpreter, which must be chosen before triton is imported."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from hypothesis import settings

# At random in CI as well, where hypothesis would repeat itself; a failure prints how to reproduce it.
settings.register_profile("tivtok", derandomize=False, print_blob=True)
settings.load_profile("tivtok")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers are as many as the cores


@pytest.fixture(autouse=True, scope="session")
def nothing_measured():
    """No test depends on what was measured on this machine."""
    from tivtok_kernels import measured

    with mock.patch.object(measured, "folders", tuple):
        measured.read.cache_clear()
        yield
    measured.read.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def nothing_kept(tmp_path_factory: pytest.TempPathFactory):
    """Tests leave nothing in the user's cache."""
    kept = tmp_path_factory.mktemp("home")
    with mock.patch("tivtok.video.tars.cache_folder", lambda: kept):
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Here and in other processes: sums are rounded otherwise in other numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def torchrun() -> Callable[..., None]:
    """Run a program with its arguments as two processes on the CPU, which need not find this machine by its name."""

    def run(*program: str, processes: int = 2) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        command += ["--nproc-per-node", str(processes), *program]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked "gpu" are skipped without one."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
