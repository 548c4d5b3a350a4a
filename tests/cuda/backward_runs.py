"""Gradient kernels on the emulator: parameters as in csrc/backward/params.h, buffers in its memory, and the verdict."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from cuda_emulator import Kernels
from forward_runs import CPU, SumGradientsParams, TensorParams, device_inputs, structure, tensor_params
from oracle import Case, check_results
from torch import Tensor

from tivtok_kernels import reference
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.problem import Call
from tivtok_kernels.schedule import WorkList, key_work, query_work

RowStatisticsParams = structure(
    "RowStatisticsParams",
    out=ctypes.c_void_p,
    dout=TensorParams,
    **dict.fromkeys(("lse", "dlse", "stats"), ctypes.c_void_p),
    **dict.fromkeys(("rows", "heads", "head_dim"), ctypes.c_int32),
)
GradientParams = structure(
    "GradientParams",
    **dict.fromkeys(("q", "dout", "k", "v", "k_tiv", "v_tiv"), TensorParams),
    **dict.fromkeys(("stats", "dq", "dk", "dv", "dk_tiv", "dv_tiv"), ctypes.c_void_p),
    **dict.fromkeys(("part_dq", "part_dk", "part_dv", "tiles"), ctypes.c_void_p),
    **dict.fromkeys(("num_tiles", "rows", "heads", "group", "head_dim"), ctypes.c_int32),
    scale=ctypes.c_float,
)


@dataclass(frozen=True)
class Tiles:
    """Rows that a block owns and rows per step, of the kernel that owns queries and of the one that owns keys."""

    queries: tuple[int, int]
    keys: tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """A case in the dtype under test, with what the forward left.

    Attributes:
        out, lse: by the reference backend in float32, out rounded to that dtype.
        workers: more of them cut long tiles into more pieces.
        fused: q, k and v as slices of one tensor, dout as a slice of a wider one.
    """

    case: Case
    out: Tensor
    lse: Tensor
    scale: float
    with_dlse: bool = True
    workers: int = 1
    fused: bool = False


def problem(case: Case, dtype: torch.dtype, scale: float | None = None, **options: object) -> Problem:
    case = case.to(dtype)
    scale = case.the_scale if scale is None else scale
    out, lse = reference.forward(_call(case.to(torch.float32), scale))
    return Problem(case, out.to(dtype), lse, scale, **options)


def gradients(kernels: Kernels, tiles: Tiles, p: Problem, seed: int = 0) -> dict[str, Tensor]:
    """The gradient of every input. Every element of all was written, or this raises."""
    case = p.case
    inputs = device_inputs(kernels, case, p.fused)
    q, k, v = (inputs[name] for name in "qkv")
    (rows, heads, head_dim), kv_heads = q.shape, k.shape[1]
    is_bf16 = q.dtype == torch.bfloat16
    dout = kernels.tensor(torch.cat([case.dout, torch.full_like(case.dout, torch.nan)], 1), "dout")[:, :heads]

    stats = kernels.empty((heads, rows, 2), torch.float32, "stats")
    out, lse = kernels.tensor(p.out, "out"), kernels.tensor(p.lse, "lse")
    dlse = kernels.tensor(case.dlse, "dlse") if p.with_dlse else None
    statistics = RowStatisticsParams(
        out.data_ptr(),
        tensor_params(dout),
        *(None if x is None else x.data_ptr() for x in (lse, dlse, stats)),
        *(rows, heads, head_dim),
    )
    kernels.call("row_statistics", statistics, is_bf16, seed=seed)

    grads = {f"d{name}": kernels.empty(x.shape, x.dtype, f"d{name}") for name, x in inputs.items()}
    works = {
        "query_gradients": (query_work, tiles.queries, heads, ("dq",)),
        "key_gradients": (key_work, tiles.keys, kv_heads, ("dk", "dv")),
    }
    for kernel, (make_work, (block, step), owners, names) in works.items():
        work = make_work(case.layout, case.scope, block, step, owners, p.workers, CPU)
        parts = {n: kernels.empty((work.num_slots, owners, block, head_dim), torch.float32, f"part_{n}") for n in names}
        params = GradientParams(
            *map(tensor_params, (q, dout, k, v, inputs.get("k_tiv", k), inputs.get("v_tiv", v))),
            stats.data_ptr(),
            *(grads[n].data_ptr() for n in ("dq", "dk", "dv")),
            *(grads.get(f"{n}_tiv", grads[n]).data_ptr() for n in ("dk", "dv")),
            *(parts[n].data_ptr() if n in parts else None for n in ("dq", "dk", "dv")),
            kernels.tensor(work.tiles, "tiles").data_ptr(),
            *(work.num_tiles, rows, heads, heads // kv_heads, head_dim, p.scale),
        )
        kernels.call(kernel, params, is_bf16, seed=seed)
        _sum_pieces(kernels, work, parts, grads, is_bf16, seed)
    assert all(kernels.written(x).all() for x in grads.values())
    return {name: x.clone() for name, x in grads.items()}


def check(kernels: Kernels, tiles: Tiles, p: Problem, seed: int = 0) -> None:
    """Assert the error budget of every gradient."""
    case = replace(p.case, scale=p.scale, dlse=p.case.dlse if p.with_dlse else None)
    check_results(gradients(kernels, tiles, p, seed), case, Arithmetic(p.out.dtype))


def _call(case: Case, scale: float) -> Call:
    inputs = case.inputs
    tiv = (inputs["k_tiv"], inputs["v_tiv"]) if case.scope == "broadcast" else None
    return Call(*(inputs[name] for name in "qkv"), tiv, case.layout, case.scope, scale)


def _sum_pieces(
    kernels: Kernels, work: WorkList, parts: dict[str, Tensor], grads: dict[str, Tensor], is_bf16: bool, seed: int
) -> None:
    if not work.num_merges:
        return
    merges = kernels.tensor(work.merges, "merges")
    for name, part in parts.items():
        pointers = (x.data_ptr() for x in (part, grads[name], grads.get(f"{name}_tiv", grads[name]), merges))
        kernels.call(
            "sum_gradients", SumGradientsParams(*pointers, work.num_merges, *part.shape[1:]), is_bf16, seed=seed
        )
