"""Each device primitive against a plain statement of what it does.

On the emulator; on the PTX that nvcc emits, emulated; and on a GPU where there is one. What holds on all three lets
the kernels' tests on the emulator say something about the hardware.
"""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import cuda_emulator
import pytest
import torch
from cuda_emulator import Kernels, argument, build, build_ptx, run_tool

HERE = Path(__file__).parent
ARCH = {"ampere": "80", "hopper": "90a"}  # the former as PTX, for every GPU since
BF16, FP16 = torch.bfloat16, torch.float16
DTYPES = [BF16, FP16]
SWIZZLES = {0: 0, 1: 32, 2: 64, 3: 128}  # code of the tensor map: width in bytes
DESCRIPTOR_SWIZZLE = {0: 0, 128: 1, 64: 2, 32: 3}  # width: code of the wgmma descriptor


class Gpu:
    """The interface of Kernels, on the first GPU."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))

    def empty(self, shape, dtype, name):
        return torch.full((*shape, dtype.itemsize), 0xFF, dtype=torch.uint8, device="cuda").view(dtype).view(shape)

    def tensor(self, source, name):
        return source.cuda().contiguous()

    def call(self, name, *args):
        torch.cuda.synchronize()
        assert self.library[name](*map(argument, args)) == 0, "CUDA error"


def compile_for_gpu(source: Path, path: Path) -> None:
    arch = ARCH[source.stem]
    target = f"arch=compute_{arch},code={'compute' if arch == '80' else 'sm'}_{arch}"
    flags = ["-std=c++20", "-O3", "-gencode", target, f"-I{cuda_emulator.CSRC}", "-shared", "-Xcompiler", "-fPIC"]
    run_tool([cuda_emulator.nvcc, *flags, "-x", "cu", "-o", path, source])


@pytest.fixture(scope="session")
def target(request, tmp_path_factory):
    """Where the kernels of a family run: (family, "source" | "ptx" | "gpu")."""
    family, where = request.param
    source = HERE / f"{family}.cpp"
    if where != "source" and not cuda_emulator.nvcc:
        pytest.skip("needs nvcc")
    if where == "gpu":
        if family == "hopper" and torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("needs a Hopper GPU")
        library = tmp_path_factory.mktemp("gpu") / f"{family}.so"
        compile_for_gpu(source, library)
        return lambda: Gpu(library)
    if cuda_emulator.unsupported:
        pytest.skip(cuda_emulator.unsupported)
    ptx = build_ptx(source.read_text(), f"sm_{ARCH[family]}", HERE) if where == "ptx" else None
    library = build(source)
    return lambda: Kernels(library, ptx)


def on(family: str):
    places = [("source", ()), ("ptx", ()), ("gpu", pytest.mark.gpu)]
    params = [pytest.param((family, place), marks=marks, id=place) for place, marks in places]
    return pytest.mark.parametrize("target", params, indirect=True, scope="session")


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def host(*numbers):
    """int64 numbers in host memory, for the drivers' geometry arguments."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int16)


# ------------------------------------------------------------------------------------------------ every architecture


@on("ampere")
def test_shuffles(target):
    k, x = target(), normal(32)
    for mask, lane in ((1, 0), (2, 31), (16, 7), (31, 12)):
        out = k.empty((3, 32), torch.float32, "out")
        k.call("run_shuffles", k.tensor(x, "in"), out, mask, lane)
        neighbours = torch.arange(32) ^ mask
        assert torch.equal(out.cpu(), torch.stack([x[neighbours], x[lane].expand(32), neighbours.float()]))


@on("ampere")
def test_barriers(target):
    k = target()
    out = k.empty((128,), torch.int32, "out")
    k.call("run_barriers", out)
    t = torch.arange(128)
    written = torch.where(t // 32 % 2 == 0, t, t - 32 + 1000)
    assert torch.equal(out.cpu().long(), written[(t + 64) % 128])


@on("ampere")
def test_ldmatrix(target):
    k, shared = target(), normal(64, 8, dtype=BF16)
    rows = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:32]
    out = k.empty((2, 4, 32), torch.int32, "out")
    k.call("run_matrices", k.tensor(shared, "shared"), k.tensor(rows.int(), "rows"), out)
    matrices = shared[rows].view(4, 8, 8)
    expected = torch.stack([matrices, matrices.mT])  # lane l holds elements (l / 4, 2 (l % 4)) and the next
    assert torch.equal(out.cpu().view(torch.int16).view(2, 4, 8, 8), bits(expected))


@on("ampere")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mma(target, dtype):
    k = target()
    a, b, c = normal(16, 16, dtype=dtype, seed=1), normal(8, 16, dtype=dtype, seed=2), normal(16, 8, seed=3)
    out = k.empty((16, 8), torch.float32, "out")
    k.call("run_product", *(k.tensor(x, "in") for x in (a, b, c)), out, dtype is BF16)
    torch.testing.assert_close(out.cpu().double(), c.double() + a.double() @ b.double().T, rtol=0, atol=1e-5)


@on("ampere")
def test_cp_async(target):
    k, x = target(), normal(128, 4)
    valid = torch.randint(2, (128,), generator=torch.Generator().manual_seed(4))
    out = k.empty((128, 4), torch.float32, "out")
    k.call("run_copies", k.tensor(x, "in"), k.tensor(valid.int(), "valid"), out)
    copied = (x * valid[:, None]).view(2, 64, 4).roll(-1, 1).view(128, 4)
    assert torch.equal(out.cpu(), copied)
    small = k.empty((64, 2), torch.float32, "small")
    k.call("run_small_copies", k.tensor(x[:64, :2], "in"), k.tensor(valid[:64].int(), "valid"), small)
    assert torch.equal(small.cpu(), (x[:64, :2] * valid[:64, None]).roll(-1, 0))


@on("ampere")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conversions(target, dtype):
    k, inf = target(), float("inf")
    ties = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519.0, 65520.0])
    special = torch.tensor([0.0, -0.0, inf, -inf, float("nan"), 3.4e38, 1e-40, 6e-8, 3e-8, 2.0**-25])
    x = torch.cat([ties, special, normal(112), 1e-6 * normal(128, seed=1)])
    packed, unpacked = k.empty((256,), torch.int16, "packed"), k.empty((256,), torch.float32, "unpacked")
    k.call("run_conversions", k.tensor(x, "in"), packed, unpacked, 128, dtype is BF16)
    got, expected = packed.cpu().view(dtype), x.to(dtype)
    number = ~x.isnan()
    assert torch.equal(bits(got)[number], bits(expected)[number]) and got[~number].isnan().all()
    assert torch.equal(unpacked.cpu()[number], expected.float()[number]) and unpacked.cpu()[~number].isnan().all()


@on("ampere")
def test_functions(target):
    k, inf = target(), float("inf")
    tiny = torch.finfo(torch.float32).tiny
    x = torch.cat([torch.tensor([0.0, -inf, inf, -150.0, -126.5, 128.0, 127.9, 1e-40, tiny]), 30 * normal(247)])
    out = k.empty((3, 256), torch.float32, "out")
    k.call("run_functions", k.tensor(x, "in"), out, 256)
    ex2, lg2, neg_inf = out.cpu().double()
    flushed = torch.where(x.abs() < tiny, 0.0, x).double()
    power = flushed.exp2().float().double()
    torch.testing.assert_close(ex2, torch.where(power < tiny, 0.0, power), rtol=2.0**-21, atol=0)
    torch.testing.assert_close(lg2, flushed.log2(), rtol=2.0**-21, atol=2.0**-21, equal_nan=True)
    assert (neg_inf == -inf).all()


# ------------------------------------------------------------------------------------------------------------ Hopper


@on("hopper")
def test_mbarriers(target):
    k, x = target(), torch.arange(100, 107, dtype=torch.int32)
    out = k.empty((7,), torch.int32, "out")
    k.call("run_handshake", k.tensor(x, "in"), out, 7)
    assert torch.equal(out.cpu(), x)


def swizzled(image: torch.Tensor, width: int) -> torch.Tensor:
    """Bytes of shared memory (a multiple of 1024): the number of a 16-byte chunk is xored with that of its line."""
    chunk = torch.arange(image.numel() // 16)
    return image.view(-1, 16)[chunk ^ (chunk >> 3 & (width // 16 - 1 if width else 0))].reshape(-1)


BOXES = [  # sizes, box, coordinates, innermost first: inside, over each edge, before the start, wholly outside
    ((64, 20), (64, 16), (0, 2)),
    ((64, 20), (64, 16), (0, 12)),
    ((56, 20), (32, 16), (40, 3)),
    ((64, 5, 9), (64, 1, 8), (0, 3, 5)),
    ((128, 3, 9), (64, 1, 16), (64, 1, -2)),
    ((64, 4, 3, 7), (16, 2, 2, 4), (24, 3, -1, 5)),
    ((64, 20), (64, 8), (0, 20)),
]


def box_elements(x: torch.Tensor, box, at) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (clamped) of a box's elements into x, outermost first, flat; and which of them lie within x."""
    index, inside = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    for size, stride, extent, start in zip(x.shape, x.stride(), box[::-1], at[::-1], strict=True):
        c = torch.arange(start, start + extent)
        index = (index[:, None] + c.clamp(0, size - 1) * stride).flatten()
        inside = (inside[:, None] & (c >= 0) & (c < size)).flatten()
    return index, inside


def geometry(x, box, at):
    pad = [0] * (4 - x.dim())
    strides = [2 * s for s in x.stride()[::-1][1:]] + [0]
    return host(*x.shape[::-1], *pad, *strides, *pad, *box, *pad, *at, *pad)


@on("hopper")
@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize(("sizes", "box", "at"), BOXES, ids=str)
def test_tma(target, sizes, box, at, swizzle):
    if swizzle:  # lines as wide as the swizzle
        box = (SWIZZLES[swizzle] // 2, *box[1:])
    k, x = target(), normal(*sizes[::-1], dtype=BF16)
    index, inside = box_elements(x, box, at)
    n = 2 * index.numel()
    loaded = k.empty((n,), torch.uint8, "loaded")
    k.call("run_box_load", k.tensor(x, "x"), loaded, x.dim(), geometry(x, box, at), swizzle, n)
    expected = torch.where(inside, x.flatten()[index], 0)
    padded = torch.zeros(-(-n // 1024) * 1024, dtype=torch.uint8)
    padded[:n] = expected.view(torch.uint8)
    assert torch.equal(loaded.cpu(), swizzled(padded, SWIZZLES[swizzle])[:n])

    stored = k.tensor(torch.full_like(x, -1), "stored")
    k.call("run_box_store", stored, k.tensor(loaded, "tile"), x.dim(), geometry(x, box, at), swizzle, n)
    back = torch.full_like(x, -1).flatten()
    back[index[inside]] = expected[inside]
    assert torch.equal(stored.cpu().flatten(), back)


@on("hopper")
@pytest.mark.parametrize("count", [0, 1, 7, 16])
def test_tma_that_ends_with_any_row(target, count):
    """The maps of csrc/common/tensor_map.h: rows are two dimensions of the same stride, the inner one a box long."""
    rows, box, start, columns = 20, 16, 2, 64
    k, x = target(), normal(rows, columns, dtype=BF16)
    memory = torch.cat([torch.full((box, columns), torch.nan, dtype=BF16), x])  # the map begins a box before x
    sizes, strides, extents = (columns, box, rows + 1), (2 * columns, 2 * columns), (columns, box, 1)
    shape = host(*sizes, 0, *strides, 0, 0, *extents, 0, 0, box - count, start + count, 0)
    n = 2 * box * columns
    loaded = k.empty((n,), torch.uint8, "loaded")
    k.call("run_box_load", k.tensor(memory, "memory"), loaded, 3, shape, 3, n)
    expected = torch.zeros(box, columns, dtype=BF16)
    expected[:count] = x[start : start + count]
    assert torch.equal(loaded.cpu(), swizzled_lines(expected.view(torch.uint8), 128))


@on("hopper")
def test_stmatrix(target):
    k, registers = target(), normal(4, 8, 8, dtype=BF16)
    rows = torch.randperm(32, generator=torch.Generator().manual_seed(5))
    out = k.empty((2, 32, 8), BF16, "out")
    k.call("run_matrix_store", k.tensor(registers, "in"), k.tensor(rows.int(), "rows"), out)
    for got, matrices in zip(out.cpu(), (registers, registers.mT), strict=True):
        assert torch.equal(got[rows], matrices.reshape(32, 8))


def operand_image(x: torch.Tensor, is_mn: bool, width: int) -> tuple[torch.Tensor, int, int]:
    """Bytes of a (rows, 16) operand in shared memory by the canonical layouts of the PTX ISA, and its lead and stride.

    K-major: one row after another, `width` bytes apart of which 32 are used. MN-major: blocks of `width` bytes of rows,
    in each the 16 values of k, one per line. Unswizzled: cores of 8 x 16 bytes.
    """
    rows, depth = x.shape
    if not width:
        cores = x.view(rows // 8, 8, 2, 8)  # row group, row, k group, k
        if not is_mn:
            return cores.permute(2, 0, 1, 3).contiguous().view(torch.uint8).flatten(), rows * 16, 128
        return cores.permute(0, 2, 3, 1).contiguous().view(torch.uint8).flatten(), 128, 256
    per_line = width // 2
    if not is_mn:
        lines = torch.zeros(rows, per_line, dtype=x.dtype)
        lines[:, :depth] = x
        lead, stride = 16, 8 * width
    else:
        lines = x.view(rows // per_line, per_line, depth).mT.reshape(-1, per_line)
        lead, stride = depth * width, 8 * width
    return swizzled_lines(lines.contiguous().view(torch.uint8), width), lead, stride


def swizzled_lines(lines: torch.Tensor, width: int) -> torch.Tensor:
    image = torch.zeros(-(-lines.numel() // 1024) * 1024, dtype=torch.uint8)
    image[: lines.numel()] = lines.flatten()
    return swizzled(image, width)


WGMMA_SHAPES = [(n, a, BF16, False, False) for n in (32, 96, 128, 160, 192, 224, 256) for a in (False, True)] + [
    (64, in_registers, dtype, a_mn, b_mn)
    for in_registers, dtype, a_mn, b_mn in itertools.product((False, True), DTYPES, (False, True), (False, True))
    if not (in_registers and a_mn)
]


@on("hopper")
@pytest.mark.parametrize("width", SWIZZLES.values())
@pytest.mark.parametrize(("n", "in_registers", "dtype", "a_is_mn", "b_is_mn"), WGMMA_SHAPES)
def test_wgmma(target, n, in_registers, dtype, a_is_mn, b_is_mn, width):
    k, accumulate = target(), n % 64 == 0
    a, b, c = normal(64, 16, dtype=dtype, seed=1), normal(n, 16, dtype=dtype, seed=2), normal(64, n, seed=3)
    image_a, a_lead, a_stride = operand_image(a, a_is_mn, width)
    image_b, b_lead, b_stride = operand_image(b, b_is_mn, width)
    registers = None
    if in_registers:  # of thread 32 w + 4 g + p: rows 16 w + g (+ 8), k = 2 p, 2 p + 1 (+ 8)
        parts = a.view(4, 2, 8, 2, 4, 2).permute(3, 1, 0, 2, 4, 5).contiguous()
        registers = k.tensor(parts.view(torch.int32).view(4, 128), "a")
    image = k.tensor(torch.cat([image_a, image_b]), "shared")
    out = k.empty((64, n), torch.float32, "out")
    layout = host(0, image_a.numel(), a_lead, a_stride, b_lead, b_stride, a_is_mn, b_is_mn)
    sizes = (image.numel(), n, dtype is BF16, DESCRIPTOR_SWIZZLE[width], accumulate)
    k.call("run_wgmma", image, registers, k.tensor(c, "c"), out, *sizes, layout)
    expected = accumulate * c.double() + a.double() @ b.double().T
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=1e-5)


@on("hopper")
def test_setmaxnreg(target):
    k = target()
    out = k.empty((384,), torch.int32, "out")
    k.call("run_registers", out)
    assert torch.equal(out.cpu(), torch.arange(384, dtype=torch.int32))
