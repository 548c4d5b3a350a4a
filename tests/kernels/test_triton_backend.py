"""Where the Triton backend refuses, and why."""

import os
import subprocess
import sys

import pytest
import torch

from tivtok_kernels import BackendUnavailable, SifLayout, available_backends, backends, sif_attention
from tivtok_kernels.cpu import backend as cpu_engine
from tivtok_kernels.problem import Problem

interpreted = pytest.mark.skipif(available_backends("cpu")["triton"] != "ok", reason="needs triton's interpreter")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem(torch.device("meta")), "NVIDIA GPUs, not on meta tensors"),
        (Problem(torch.device("cpu"), torch.float64), "no float64 kernels"),
        (Problem(torch.device("cpu"), torch.float16, 12), "multiple of 8 up to 256, got 12"),
        (Problem(torch.device("cpu"), torch.float16, 264), "multiple of 8 up to 256, got 264"),
        pytest.param(Problem(torch.device("cpu"), torch.bfloat16, 64), "float16 works there", marks=interpreted),
    ],
)
def test_refusals_say_why(problem, reason):
    assert reason in backends.why_not("triton", problem)


@interpreted
def test_bfloat16_in_the_interpreter_raises_and_never_answers_wrongly():
    x = torch.randn(5, 1, 16, dtype=torch.bfloat16)
    with pytest.raises(BackendUnavailable, match="as if they were integers"):
        sif_attention(x, x, x, SifLayout.from_lengths([1], [[4]]), backend="triton")


def test_auto_never_chooses_the_interpreter():
    problem = Problem(torch.device("cpu"), torch.float32, 64)
    assert backends.choose("attention", "auto", problem) == ("sdpa" if cpu_engine.why_not(problem) else "cpu")


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("", "set TRITON_INTERPRET=1 before triton is imported"),
        ("sys.modules['triton'] = None", "triton cannot be imported"),
    ],
)
def test_without_interpreter_or_without_triton(setup, reason):
    code = f"import sys; {setup}\nfrom tivtok_kernels import available_backends\nprint(available_backends('cpu'))"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert reason in done.stdout


def test_importing_the_package_leaves_triton_alone():
    code = "import sys, tivtok_kernels, tivtok_kernels.triton.backend; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@interpreted
@pytest.mark.parametrize(
    ("strides", "copied"),
    [((2**23 - 8, 64, 1), False), ((2**23, 64, 1), True), ((64, 2**31 - 8, 1), False), ((64, 2**31, 1), True)],
)
def test_strides_that_32_bits_cannot_count_are_copied_away(strides, copied):
    """Within a block of 256 rows an offset is a 32-bit number, and so is a stride of heads."""
    from tivtok_kernels.triton.launch import addressable

    x = torch.empty_strided((256, 2, 64), strides, dtype=torch.float16, device="meta")
    read = addressable(x)
    assert (read is not x) == copied
    assert 255 * read.stride(0) + 256 < 2**31 and read.stride(1) < 2**31
