"""Kernels that are not ours: the Triton templates that torch's compiler ships, filled in and translated to PTX.

torch fills them in where there is a GPU. Here the functions that the templates call write sizes and strides as numbers;
what a template computes, and how, is left as it is.
"""

from __future__ import annotations

import ctypes
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cuda_emulator
import torch
from cuda_emulator import Kernels
from torch import Tensor
from triton_runs import DRIVER

FOLDER = Path(torch.__file__).with_name("_inductor") / "kernel"
MATMUL = "templates/triton_mm"
MATMUL_BY_TMA = "templates/triton_persistent_tma_mm"
MATMUL_BY_SPECIALISED_WARPS = "templates/triton_blackwell_ws_persistent_device_tma_mm"
FLEX = "flex/templates/flex_attention"
# Text that a template needs besides its own.
PARTS = {FLEX: ("flex/templates/utilities", "flex/templates/common")}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "i32": torch.int32}
UNUSED = {"INDEX_DTYPE": "tl.int32", "TMA_EXPERIMENTAL_API": False, "ALLOW_TF32": False, "ACC_TYPE": "tl.float32"}


class Operand(NamedTuple):
    """A tensor that a template reads, or its result. kind: of its elements, as triton's signatures have it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str

    @classmethod
    def like(cls, x: Tensor) -> Operand:
        return cls(tuple(x.shape), x.stride(), next(kind for kind, dtype in DTYPES.items() if dtype == x.dtype))


class Filled(NamedTuple):
    """A template with everything that it leaves open.

    Attributes:
        operands: name -> what is read, and "OUT". constants: the names in capitals.
        scores: what the templates of attention make of scores, and their mask.
        stores_by_tma: OUT, which torch leaves to whoever calls the template.
    """

    template: str
    operands: dict[str, Operand]
    constants: dict[str, object]
    warps: int = 4
    stages: int = 3
    scores: tuple[str, str] = ("", "")
    stores_by_tma: bool = False


class Foreign(NamedTuple):
    """A translated template. shared: bytes per block. scratch: bytes of device memory per block."""

    text: str
    warps: int
    shared: int
    scratch: int


def is_here(template: str) -> bool:
    """Whether this version of torch has the template, and what belongs to it."""
    return all(_path(part).exists() for part in (template, *PARTS.get(template, ())))


def _path(template: str) -> Path:
    return FOLDER / f"{template}.py.jinja"


def argument(name: str) -> str:
    return f"arg_{name}"


class Filling:
    """The functions that templates call."""

    def __init__(self, filled: Filled):
        self.filled = filled
        self.constants = UNUSED | filled.constants

    def gen_defines(self) -> str:
        return "\n".join(f"{name}: tl.constexpr = {value}" for name, value in self.constants.items())

    def gen_argdefs(self) -> str:
        return ", ".join(map(argument, self.filled.operands))

    def def_kernel(self, *_: str) -> str:
        names = [f"{name} = {argument(name)}" for name in self.filled.operands]
        body = "".join(f"\n    {line}" for line in [*self.gen_defines().split("\n"), *names])
        return f"@triton.jit\ndef foreign({self.gen_argdefs()}):{body}"

    def size(self, name: str, dimension: int) -> int:
        return self.filled.operands[name].shape[dimension]

    def stride(self, name: str, dimension: int | None = None) -> str:
        strides = self.filled.operands[name].strides
        return str(strides[dimension]) if dimension is not None else ", ".join(map(str, strides))

    def load_input(
        self, name: str, value: str, indices: Sequence[str], mask: str | None, indent_width: int, index_shape: object
    ) -> str:
        masked = f", mask={mask}, other=0.0" if mask else ""
        return f"{value} = tl.load({name} + {self._offset(name, indices)}{masked})"

    def store_output(
        self,
        indices: Sequence[str],
        value: str,
        mask: str | None = None,
        indent_width: int = 4,
        val_shape: Sequence[str] = (),
        block_indexing: bool = False,
    ) -> str:
        shape, strides, _ = self.filled.operands["OUT"]
        value = f"{value}.to(OUT.dtype.element_ty)"
        block = f"[{', '.join(val_shape)}]"
        if block_indexing and self.filled.stores_by_tma:
            tensor = f"tl.make_tensor_descriptor(OUT, {list(shape)}, {list(strides)}, {block})"
            return f"{tensor}.store([{', '.join(indices)}], {value})"
        if block_indexing:  # where the block begins
            m, n = (f"({i} + tl.arange(0, {size}))" for i, size in zip(indices, val_shape, strict=True))
            indices = [f"{m}[:, None]", f"{n}[None, :]"]
            mask = f"({indices[0]} < {shape[0]}) & ({indices[1]} < {shape[1]})"
        return f"tl.store(OUT + {self._offset('OUT', indices)}, {value}, mask={mask})"

    def modification(self, subgraph_number: int, output_name: str, **_: object) -> str:
        return f"{output_name} = {self.filled.scores[subgraph_number]}"

    def _offset(self, name: str, indices: Sequence[str]) -> str:
        strides = self.filled.operands[name].strides
        return " + ".join(f"({i}) * {stride}" for i, stride in zip(indices, strides, strict=True))


def source_of(filled: Filled) -> str:
    """Python."""
    import jinja2  # torch needs it to compile, and brings it along

    functions = Filling(filled)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["indent_except_first"] = lambda text, depth: text.replace("\n", "\n" + "    " * depth)
    parts = (filled.template, *PARTS.get(filled.template, ()))
    named = {name: getattr(functions, name) for name in vars(Filling) if not name.startswith("_")}
    text = environment.from_string("\n\n".join(_path(part).read_text() for part in parts))
    return "import triton\nimport triton.language as tl\n\n" + text.render(named, **functions.constants)


def translate(filled: Filled) -> Foreign:
    """Run it where triton compiles (see `outside_the_interpreter`): the PTX for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "foreign_template.py")  # triton reads a function's source from its file
        path.write_text(source_of(filled))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        signature = {argument(name): f"*{operand.kind}" for name, operand in filled.operands.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(signature))}
        options = {"num_warps": filled.warps, "num_stages": filled.stages}
        source = ASTSource(module.foreign, signature, {}, aligned)
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    of = kernel.metadata
    return Foreign(kernel.asm["ptx"], of.num_warps, of.shared, of.global_scratch_size)


def run(
    foreign: Foreign, filled: Filled, inputs: Mapping[str, Tensor], grid: tuple[int, int, int], seed: int = 0
) -> tuple[dict[str, Tensor], Kernels]:
    """What it fills, and the machine it ran on.

    Args:
        inputs: of the operands; those that are missing, "OUT" above all, are what it fills.
    """
    cuda_emulator.runtime()  # what libraries of PTX are linked to
    library = ctypes.CDLL(str(cuda_emulator.build_text(foreign.text)))
    machine = Kernels(cuda_emulator.build(DRIVER))
    tensors = {}
    for name, (shape, strides, kind) in filled.operands.items():
        size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if name in inputs:
            tensors[name] = machine.tensor(inputs[name].as_strided((size,), (1,)), name)
        else:
            tensors[name] = machine.empty((size,), DTYPES[kind], name)
    scratch = machine.empty((foreign.scratch * grid[0] * grid[1] * grid[2],), torch.uint8, "scratch")
    addresses = [x.data_ptr() if x.numel() else 0 for x in (*tensors.values(), scratch)]
    held = [ctypes.c_uint64(address) for address in (*addresses, 0)]  # the last of the profiler's
    pointers = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
    entry = ctypes.cast(library["ptx_foreign"], ctypes.c_void_p).value
    threads = 32 * foreign.warps
    # Triton publishes its mbarriers by no fence, and several threads store one number.
    allowed = {"repeated_stores": True, "unpublished_mbarriers": True}
    machine.call("launch", entry, pointers, *grid, threads, foreign.shared, seed=seed, **allowed)
    filled_here = {name: x for name, x in tensors.items() if name not in inputs}
    results = {name: x.as_strided(*filled.operands[name][:2]).clone() for name, x in filled_here.items()}
    return results, machine
