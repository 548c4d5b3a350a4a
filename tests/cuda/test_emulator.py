"""The emulator on toy kernels: it finds every planted fault, names it, and finds nothing in the correct kernels."""

import ctypes
import re
from pathlib import Path

import cuda_emulator
import ptx2cpp
import pytest
import torch
from cuda_emulator import Findings, Kernels, Mutation, build, mutant

pytestmark = pytest.mark.skipif(cuda_emulator.unsupported is not None, reason=str(cuda_emulator.unsupported))

TOYS = Path(cuda_emulator.__file__).with_name("toys.cpp")
PRIMITIVES = Path(__file__).parents[1] / "gpu" / "primitives"
TILES = torch.randn(72, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
A, B = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
WORDS = torch.arange(512, dtype=torch.int32)

# toy: its inputs, and the shape and type of its output
ARGUMENTS = {
    "exchange": ([], (128,), torch.int32),
    "exchange_in_warp": ([], (64,), torch.int32),
    "global_memory": ([WORDS[:128]], (128,), torch.int32),
    "named_barriers": ([], (32,), torch.int32),
    "copies": ([WORDS], (512,), torch.int32),
    "ring": ([TILES], (72, 64), torch.bfloat16),
    "product": ([A, B], (64, 64), torch.float32),
}
EXPECTED = {
    "exchange": lambda: torch.arange(128, dtype=torch.int32),
    "exchange_in_warp": lambda: torch.arange(64, dtype=torch.int32) ^ 1,
    "global_memory": lambda: WORDS[:128],
    "named_barriers": lambda: WORDS[:32],
    "copies": lambda: WORDS.view(4, 32, 4).roll(-1, 1).flatten(),
    "ring": lambda: 2 * TILES,
    "product": lambda: 2 * A.float() @ B.float().T,
}
FAULTS = [  # toy, fault, the kind of finding that names it; with "/" the threads' order decides which
    ("exchange", "no barrier", "race"),
    ("exchange", "no second barrier", "race"),
    ("exchange", "all write one word", "race"),
    ("exchange", "read of nothing", "uninitialised-shared"),
    ("exchange", "store past the end", "oob-shared"),
    ("exchange", "load past the end", "oob-shared"),
    ("exchange_in_warp", "shuffle for a barrier", "race"),
    ("exchange_in_warp", "half a warp shuffles", "divergence"),
    ("global_memory", "load past the end", "oob-global"),
    ("global_memory", "load from the output", "uninitialised-global"),
    ("global_memory", "store before the start", "oob-global"),
    ("global_memory", "wild store", "oob-global"),
    ("global_memory", "wild load", "fault"),
    ("global_memory", "misaligned load", "misaligned"),
    ("global_memory", "blocks share a word", "global-conflict"),
    ("global_memory", "block reads another's word", "global-conflict"),
    ("global_memory", "threads race", "race"),
    ("runaway", "deep recursion", "fault"),
    ("runaway", "endless loop", "timeout"),
    ("named_barriers", "no arrival", "deadlock"),
    ("named_barriers", "no wait", "race"),
    ("named_barriers", "other barrier", "deadlock"),
    ("named_barriers", "other count", "barrier"),
    ("named_barriers", "a warp skips the last barrier", "deadlock"),
    ("copies", "misaligned copy", "misaligned"),
    ("copies", "never committed", "in-flight"),
    ("copies", "no second stage", "in-flight"),
    ("copies", "waits for one group less", "in-flight"),
    ("copies", "no barrier after the wait", "race"),
    ("copies", "no barrier before the next copy", "race"),
    ("ring", "no fence after init", "proxy-fence"),
    ("ring", "no barrier after init", "mbarrier/race"),
    ("ring", "count too low", "race/deadlock"),
    ("ring", "does not wait for empty", "race/mbarrier"),
    ("ring", "wrong parity of empty", "deadlock"),
    ("ring", "expects too few bytes", "mbarrier"),
    ("ring", "expects too many bytes", "deadlock"),
    ("ring", "expects no bytes", "in-flight"),
    ("ring", "misaligned tile", "tma"),
    ("ring", "does not wait for full", "in-flight/uninitialised-shared"),
    ("ring", "wrong parity of full", "in-flight/uninitialised-shared"),
    ("ring", "no proxy fence", "proxy-fence"),
    ("ring", "one lane arrives for all", "race"),
    ("ring", "no arrival", "deadlock"),
    ("ring", "store never committed", "tma"),
    ("ring", "no wait for the store", "race"),
    ("ring", "reads an mbarrier", "mbarrier"),
    ("product", "no proxy fence", "proxy-fence"),
    ("product", "no barrier", "race"),
    ("product", "no wgmma fence", "wgmma"),
    ("product", "registers written after the fence", "wgmma"),
    ("product", "descriptors differ", "wgmma"),
    ("product", "operand past the end", "oob-shared"),
    ("product", "A register reused in flight", "wgmma"),
    ("product", "accumulator read in flight", "wgmma"),
    ("product", "accumulator written in flight", "wgmma"),
    ("product", "operand overwritten in flight", "race"),
    ("product", "half a warpgroup waits", "divergence"),
    ("product", "waits for all but one group", "wgmma"),
    ("product", "odd register count", "setmaxnreg"),
]


@pytest.fixture(scope="session")
def library():
    return build(TOYS)


@pytest.fixture
def kernels(library):
    return Kernels(library)


def call(kernels, toy, fault, **options):
    """The toy's output; raises Findings."""
    inputs, shape, dtype = ARGUMENTS[toy]
    inputs = [kernels.tensor(x, "in") for x in inputs]
    out = kernels.empty(shape, dtype, "out")
    kernels.call(f"toy_{toy}", fault, *inputs, out, **options)
    assert kernels.written(out).all()
    return out


@pytest.mark.parametrize("toy", ARGUMENTS)
@pytest.mark.parametrize("options", [{"seed": seed} for seed in range(4)] + [{"eager_copies": True}], ids=str)
def test_correct_toys_pass(kernels, toy, options):
    torch.testing.assert_close(call(kernels, toy, "none", **options), EXPECTED[toy](), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("toy", "fault", "kind"), FAULTS, ids=lambda x: x)
def test_faults_are_found(library, toy, fault, kind):
    for seed in (0,) if toy == "runaway" else (0, 1):
        kernels = Kernels(library)
        with pytest.raises(Findings) as found:
            if toy == "runaway":
                kernels.call("toy_runaway", fault, seconds=1)
            else:
                call(kernels, toy, fault, seed=seed)
        assert found.value.kinds & set(kind.split("/")), found.value


def test_every_fault_of_the_toys_is_listed():
    assert set(re.findall(r'fault\("([^"]*)"\)', TOYS.read_text())) == {fault for _, fault, _ in FAULTS}


def test_findings_name_the_line(kernels):
    with pytest.raises(Findings) as found:
        call(kernels, "exchange", "store past the end")
    lines = TOYS.read_text().splitlines()
    expected = next(i for i, line in enumerate(lines, start=1) if "store past the end" in line)
    assert found.value.reports[0]["where"].startswith(f"toys.cpp:{expected}")


def test_impossible_launch(kernels):
    with pytest.raises(Findings, match="245760 bytes of shared memory"):
        kernels.call("toy_too_much_shared_memory")


def test_written_elements_are_known(kernels):
    out = kernels.empty((160,), torch.int32, "out")
    kernels.call("toy_exchange", "none", out)
    assert torch.equal(kernels.written(out), torch.arange(160) < 128)
    assert kernels.written(kernels.tensor(WORDS, "in")).all()


@pytest.mark.parametrize(("spread", "wavefronts"), [(1, 8), (2, 16), (8, 64)])
def test_bank_conflicts_are_counted(spread, wavefronts):
    """Two times four matrices whose rows of 16 bytes lie `spread` rows apart, modulo 8."""
    kernels = Kernels(build(PRIMITIVES / "ampere.cpp"))
    rows = kernels.tensor((torch.arange(8) * spread % 64).repeat(4).int(), "rows")
    out = kernels.empty((2, 4, 32), torch.int32, "out")
    kernels.call("run_matrices", kernels.tensor(torch.zeros(64, 4), "in"), rows, out)
    assert (kernels.counters.ldmatrix_wavefronts, kernels.counters.ldmatrix_ideal) == (wavefronts, 8)


def test_a_mutation_changes_what_runs(library, tmp_path):
    wrong_stride = Mutation("stride for lead", "common/device.h", "uint64_t(lead >> 4)", "uint64_t(stride >> 4)")
    out = call(Kernels(mutant(TOYS, wrong_stride, tmp_path)), "product", "none")
    assert not torch.allclose(out, EXPECTED["product"](), atol=0.1)


@pytest.mark.parametrize("text", ["no such text", "DEVICE"])
def test_a_stale_mutation_is_an_error(tmp_path, text):
    with pytest.raises(ValueError, match=r"mutation 'm': csrc/common/ptx.h holds its text \d+ times, expected once"):
        mutant(TOYS, Mutation("m", "common/ptx.h", text, ""), tmp_path)


# -------------------------------------------------------------------------------------------------------- the driver

MAP = {"base": 4096, "rank": 2, "sizes": (64, 20), "stride": 128, "box": (64, 16), "steps": (1, 1), "swizzle": 3}
WRONG_MAPS = [
    {"base": 4104},
    {"rank": 0},
    {"rank": 6},
    {"sizes": (64, 0)},
    {"stride": 120},
    {"stride": 1 << 40},
    {"box": (64, 257)},
    {"box": (0, 16)},
    {"box": (128, 16)},  # wider than the swizzle
    {"box": (4, 16), "swizzle": 0},  # no multiple of 16 bytes
    {"steps": (2, 1)},
]


def encode(base, rank, sizes, stride, box, steps, swizzle):
    """What cuTensorMapEncodeTiled returns for a bfloat16 matrix; the map itself is 128 bytes, aligned to 64."""
    memory = ctypes.create_string_buffer(192)
    place = ctypes.c_void_p(-(-ctypes.addressof(memory) // 64) * 64)
    sizes, strides = (ctypes.c_uint64 * 6)(*sizes), (ctypes.c_uint64 * 5)(stride)
    box, steps = (ctypes.c_uint32 * 6)(*box), (ctypes.c_uint32 * 6)(*steps)
    bf16, promotion = 9, 2
    matrix = (bf16, rank, ctypes.c_void_p(base), sizes, strides, box, steps)
    return cuda_emulator.runtime().cuTensorMapEncodeTiled(place, *matrix, 0, swizzle, promotion, 0)


def test_tensor_maps_follow_the_drivers_limits():
    assert encode(**MAP) == 0
    assert all(encode(**(MAP | wrong)) == 1 for wrong in WRONG_MAPS)


# --------------------------------------------------------------------------------------------------------------- PTX

ENTRY = ".visible .entry f(\n.param .u64 f_param_0\n)\n{\n%s\nret;\n}\n"


def test_ptx_becomes_cpp():
    text = (
        ".reg .pred %p<2>;\n.reg .b32 %r<3>;\n$L__1:\nadd.s32 %r1, %r1, -4;\nsetp.gt.s32 %p1, %r1, 0;\n@%p1 bra $L__1;"
    )
    cpp = ptx2cpp.translate(ENTRY % text)
    assert 'extern "C" void ptx_f(void** params)' in cpp
    assert "if (v__p1) { goto v__L__1; }" in cpp


def test_symbols_that_nobody_uses_are_passed_over():
    """Those of headers."""
    kernel = ENTRY % ".reg .b32 %r<2>;\nmov.u32 %r1, 7;"
    assert ptx2cpp.translate(".global .align 1 .b8 unused[1];\n" + kernel) == ptx2cpp.translate(kernel)


@pytest.mark.parametrize(
    "ptx",
    [
        ENTRY % ".reg .b32 %r<2>;\npopc.b32 %r1, %r1;",
        ENTRY % ".reg .f32 %f<2>;\nadd.rz.f32 %f1, %f1, %f1;",
        ENTRY % ".reg .f64 %fd<2>;\nmov.f64 %fd1, %fd1;",
        ENTRY % ".reg .f32 %f<2>;\n.reg .pred %p<2>;\nsetp.nan.f32 %p1, %f1, %f1;",
        ENTRY % "mov.b32 %r1, %r1;",
        ENTRY % ".reg .b32 %r<2>;\nmov.u32 %r1, %clock;",
        ".shared .align 4 .b8 tile[128];\n" + ENTRY % ".reg .b32 %r<2>;\nmov.u32 %r1, tile;",
        ".global .align 4 .b8 table[128];\n" + ENTRY % ".reg .b64 %rd<2>;\nmov.u64 %rd1, table;",
    ],
)
def test_unknown_ptx_is_an_error(ptx):
    with pytest.raises(ptx2cpp.UnsupportedPtx):
        ptx2cpp.translate(ptx)


@pytest.mark.skipif(not cuda_emulator.nvcc, reason="needs nvcc")
def test_a_kernel_that_the_ptx_lacks_is_a_finding(library):
    ptx = cuda_emulator.build_ptx("__global__ void other() {}\n", "sm_80")
    with pytest.raises(Findings, match="the PTX in use holds no ptx_"):
        call(Kernels(library, ptx), "exchange", "none")
