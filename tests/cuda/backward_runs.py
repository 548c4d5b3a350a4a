"""Gradient kernels on the emulator: buffers in its device memory, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from cuda_emulator import Kernels
from forward_runs import (
    CPU,
    SharesParams,
    SumGradientsParams,
    TensorParams,
    addresses,
    device_inputs,
    shares_params,
    tensor_params,
)
from oracle import Case, check_results
from structures import structures
from torch import Tensor

from tivtok_kernels import reference
from tivtok_kernels.cuda.shares import by_length, gradient_items
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.problem import Call
from tivtok_kernels.schedule import WorkList, key_work, query_work

_PARAMS = structures("backward/params.h", TensorParams, SharesParams)
RowStatisticsParams, GradientParams = _PARAMS["RowStatisticsParams"], _PARAMS["GradientParams"]


@dataclass(frozen=True)
class Tiles:
    """Rows that a block owns and rows per step, of what owns queries and of what owns keys; ``blocks``: of a persistent
    kernel."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    blocks: int = 1


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
        **addresses(out=out, lse=lse, dlse=dlse, stats=stats),
        dout=tensor_params(dout),
        rows=rows,
        heads=heads,
        head_dim=head_dim,
    )
    kernels.call("row_statistics", statistics, is_bf16, seed=seed)

    grads = {f"d{name}": kernels.empty(x.shape, x.dtype, f"d{name}") for name, x in inputs.items()}
    own = {"k_tiv": k, "v_tiv": v}  # where the TIV keys have no tensors of their own
    queries = query_work(case.layout, case.scope, *tiles.queries, heads, p.workers, CPU)
    keys = key_work(case.layout, case.scope, *tiles.keys, kv_heads, p.workers, CPU)
    parts = {"dq": (queries, heads, tiles.queries[0]), "dk": (keys, kv_heads, tiles.keys[0])}
    parts["dv"] = parts["dk"]
    pieces = {
        name: kernels.empty((work.num_slots, owners, block, head_dim), torch.float32, f"part_{name}")
        for name, (work, owners, block) in parts.items()
    }
    items = gradient_items(queries, keys, heads, heads // kv_heads, (tiles.queries[1], tiles.keys[1]))
    params = GradientParams(
        **{name: tensor_params(x) for name, x in (own | inputs | {"dout": dout}).items()},
        **addresses(stats=stats, **{"dk_tiv": grads["dk"], "dv_tiv": grads["dv"]} | grads),
        **addresses(**{f"part_{name}": part for name, part in pieces.items()}),
        **addresses(
            query_tiles=kernels.tensor(queries.tiles, "query tiles"), key_tiles=kernels.tensor(keys.tiles, "key tiles")
        ),
        num_query_tiles=queries.num_tiles,
        num_key_tiles=keys.num_tiles,
        shares=shares_params(kernels, by_length(items, tiles.blocks, CPU)),
        rows=rows,
        heads=heads,
        group=heads // kv_heads,
        head_dim=head_dim,
        scale=p.scale,
    )
    kernels.call("gradients", params, is_bf16, seed=seed)
    for name, (work, _, _) in parts.items():
        _sum_pieces(kernels, work, name, pieces[name], grads, is_bf16, seed)
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
    kernels: Kernels, work: WorkList, name: str, part: Tensor, grads: dict[str, Tensor], is_bf16: bool, seed: int
) -> None:
    if not work.num_merges:
        return
    grad, merges = grads[name], kernels.tensor(work.merges, "merges")
    heads, block, head_dim = part.shape[1:]
    params = SumGradientsParams(
        **addresses(part=part, grad=grad, grad_tiv=grads.get(f"{name}_tiv", grad), merges=merges),
        num_merges=work.num_merges,
        heads=heads,
        block=block,
        head_dim=head_dim,
    )
    kernels.call("sum_gradients", params, is_bf16, seed=seed)
