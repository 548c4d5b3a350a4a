"""CPU backend: the C++ kernels of csrc/cpu (docs/kernels/cpu.md), for all dtypes but float64.

Importing this module does not load the library; the first question about it does.
"""

from __future__ import annotations

import ctypes
import os
import sysconfig
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tivtok_kernels.cpu.plan import Plan, make_plan, plan_gradients
from tivtok_kernels.cpu.sources import STRUCTURES, stamp
from tivtok_kernels.problem import Call, Direction, Forward, Problem
from tivtok_kernels.ranges import RangeLayout

NOT_BUILT = "its library is not built: pip install -e . builds it where a C++17 compiler (GCC or Clang) is found"
OTHER_SOURCES = "its library was built from other sources than these, run pip install -e . again"
MAX_HEAD_DIM = 256

SOURCES = Path(__file__).parents[2] / "csrc" / "cpu"  # there in a checkout, not where a wheel is installed
LIBRARY = Path(__file__).with_name("engine" + sysconfig.get_config_var("EXT_SUFFIX"))

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # ElementType of csrc/cpu/params.h

# Query rows of a unit, all query heads of a key head together. The forward's state of that many rows stays in the
# second-level cache; the backward writes partial gradients of a frame's keys for every piece that it cuts a frame into.
_FORWARD_ROWS = 576
_BACKWARD_ROWS = 2048

# Head dimension up to which vectors alone are mostly faster than torch's AMX bfloat16 (docs/kernels/cpu.md).
_WIDEST_AGAINST_TILES = 64

# Multiplications of one of its products that are worth waking a thread for: some 10 us of work.
_WORK_PER_THREAD = 1 << 17

_PANEL = 16  # columns are padded to a multiple of it


def why_not(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return f"it runs on CPU tensors, not on {problem.device.type} tensors"
    if problem.dtype not in (None, *_TYPES):
        return f"it computes in float32, which is not enough for {str(problem.dtype).removeprefix('torch.')}"
    if problem.head_dim is not None and problem.head_dim > MAX_HEAD_DIM:
        return f"head_dim must be at most {MAX_HEAD_DIM}, got {problem.head_dim}"
    return _load_error()


def wins(problem: Problem) -> bool:
    """Whether "auto" may choose it: not for wide bfloat16 heads where torch alone multiplies those in AMX tiles."""
    by_tiles = problem.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    if not by_tiles or (problem.head_dim or 0) <= _WIDEST_AGAINST_TILES:
        return True
    return _load_error() is None and variant() == "amx"


def plan_call(call: Call, direction: Direction) -> Plan:
    heads, key_heads = call.q.shape[1], call.k.shape[1]
    if direction == "backward" and isinstance(call.layout, RangeLayout):
        return plan_gradients(call.layout, heads // key_heads)
    most_rows = _FORWARD_ROWS if direction == "forward" else _BACKWARD_ROWS
    return make_plan(call.layout, call.scope, max(96, most_rows * key_heads // heads))


def forward(call: Call) -> tuple[Tensor, Tensor | None]:
    k_tiv, v_tiv = call.tiv or (None, None)
    return repeatable(call)(call.q, call.k, call.v, k_tiv, v_tiv, call.wants_lse)


def repeatable(call: Call) -> Forward:
    """The forward of such calls, with all found out that does not differ from one to the next."""
    plan, scale, threads = plan_call(call, "forward"), call.scale, _most_threads(call)
    floats = call.q.shape[1] * (_padded(call.q.shape[2]) + 2)
    rows = call.q.new_empty((), dtype=torch.float32).expand(call.q.shape[:2])
    fixed, tensors = _plan_and_shape(plan, call), _strided(call.q, call.k, call.v, *call.tiv_or_own)
    blank = array("q", (*fixed, *tensors, 0, 0, 0))
    inputs, results = slice(len(fixed), -3, 3), slice(-3, None)  # their addresses in ForwardParams

    def forward(
        q: Tensor, k: Tensor, v: Tensor, k_tiv: Tensor | None, v_tiv: Tensor | None, wants_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty_like(rows, memory_format=torch.contiguous_format) if wants_lse else None
        part = _workspace(q, plan.q_slots * floats)
        fields, tiv = blank[:], (k, v) if k_tiv is None else (k_tiv, v_tiv)
        fields[inputs] = _addresses(q, k, v, *tiv)
        fields[results] = _addresses(out, lse, part)
        _run("tivtok_cpu_forward", fields, scale, threads)
        return out, lse

    return forward


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    q, k, v = call.q, call.k, call.v
    k_tiv, v_tiv = call.tiv_or_own
    heads, key_heads, columns = q.shape[1], k.shape[1], _padded(q.shape[2])
    plan = plan_call(call, "backward")
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, *(call.tiv or ()))]
    part_q = _workspace(q, plan.q_slots * heads * columns)
    part_k = _workspace(q, plan.k_slots * key_heads * 2 * columns)
    part_frame = _workspace(q, plan.frame_slots * key_heads * 2 * columns)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    fields = (
        *_plan_and_shape(plan, call),
        *_strided(q, dout, k, v, k_tiv, v_tiv),
        *_addresses(out, lse, dlse, *grads[:3], *(grads[3:] or grads[1:3]), part_q, part_k, part_frame),
    )
    _run("tivtok_cpu_backward", array("q", fields), call.scale, _most_threads(call))
    return grads


def variants() -> dict[str, bool]:
    """The instruction sets that the library has kernels for, and whether this machine runs them."""
    text = ctypes.create_string_buffer(256)
    _library().tivtok_cpu_variants(text, len(text))
    words = text.value.decode().replace("!", "! ").split()
    return {word.removesuffix("!"): not word.endswith("!") for word in words}


def variant() -> str:
    """The instruction set in use."""
    return _library().tivtok_cpu_variant().decode()


def use_variant(name: str) -> None:
    """Use the kernels of the named instruction set from now on, in the whole process.

    Raises:
        ValueError: there are none of that name, or this machine cannot run them.
    """
    _use(_library(), name, "name")


def _use(library: ctypes.CDLL, name: str, source: str) -> None:
    if not library.tivtok_cpu_use(name.encode()):
        raise ValueError(f"{source} must be an instruction set that this machine and this build have, got {name!r}")


def _scratch(like: Tensor, *shape: int) -> Tensor:
    """float32 whatever torch's default dtype and device are: the kernels are given its address alone."""
    return like.new_empty(shape, dtype=torch.float32)


def _workspace(like: Tensor, floats: int) -> Tensor | None:
    """`_scratch`; most plans need none, and an allocation is a good part of a small call."""
    return _scratch(like, floats) if floats else None


def _padded(head_dim: int) -> int:
    return -(-head_dim // _PANEL) * _PANEL


def _plan_and_shape(plan: Plan, call: Call) -> tuple[int, ...]:
    heads, head_dim = call.q.shape[1:]
    return (*plan.fields, _TYPES[call.q.dtype], heads, heads // call.k.shape[1], head_dim)


def _strided(*tensors: Tensor) -> list[int]:
    return [n for x in tensors for n in (x.data_ptr(), *x.stride()[:2])]


def _addresses(*tensors: Tensor | None) -> array[int]:
    return array("q", [0 if x is None else x.data_ptr() for x in tensors])


def _most_threads(call: Call) -> int:
    """As many threads as find enough to do."""
    return 1 + call.ranges.area * call.q.shape[1] * call.q.shape[2] // _WORK_PER_THREAD


def _run(name: str, fields: array[int], scale: float, most_threads: int) -> None:
    address, threads = fields.buffer_info()[0], min(torch.get_num_threads(), most_threads)
    if _function(name)(address, scale, threads, _parallel()):
        raise MemoryError("the CPU attention kernels found no memory for their scratch space")


@cache
def _function(name: str) -> Callable[..., int]:
    return getattr(_library(), name)


@cache
def _load_error() -> str | None:
    if not LIBRARY.exists():
        return NOT_BUILT
    try:
        _library()
    except OSError as error:
        return f"its library cannot be loaded: {error}"
    except ImportError as error:
        return str(error)
    return None


@cache
def _library() -> ctypes.CDLL:
    """Raises:
    ImportError: what it computes may not be what is asked of it, for it was built from other sources.
    """
    library = ctypes.CDLL(str(LIBRARY))
    if not _is_current(library):
        raise ImportError(OTHER_SOURCES)
    for name in ("tivtok_cpu_forward", "tivtok_cpu_backward"):
        arguments = [ctypes.c_void_p, ctypes.c_double, ctypes.c_int64, ctypes.c_void_p]
        getattr(library, name).argtypes = arguments
        getattr(library, f"{name}_fields").restype = ctypes.c_int64
    library.tivtok_cpu_variants.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    library.tivtok_cpu_variant.restype = ctypes.c_char_p
    library.tivtok_cpu_use.argtypes = [ctypes.c_char_p]
    if forced := os.environ.get("TIVTOK_CPU_VARIANT"):
        _use(library, forced, "TIVTOK_CPU_VARIANT")
    return library


def _is_current(library: ctypes.CDLL) -> bool:
    built_from = getattr(library, "tivtok_cpu_sources", None)
    if built_from is None:
        return False
    built_from.restype = ctypes.c_char_p
    built = built_from().decode()
    return built == stamp(SOURCES) if SOURCES.is_dir() else built.partition(" ")[2] == STRUCTURES


@cache
def _parallel() -> int | None:
    """GOMP_parallel of the OpenMP that torch itself runs on, so that both share one pool of threads.

    None where torch was built without it: the engine then starts threads of its own.
    """
    for library in sorted(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(library)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
