"""Forward kernels on the emulator: buffers in its device memory, and the oracle's verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from cuda_emulator import Kernels
from oracle import Case, check_results
from structures import Structure, structures
from torch import Tensor

from tivtok_kernels.cuda.shares import Shares
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.schedule import WorkList, query_work

CPU = torch.device("cpu")


TensorParams = structures("common/tensor.h")["Tensor"]
ForwardParams = structures("forward/params.h", TensorParams)["ForwardParams"]
SharesParams = structures("common/shares.h")["Shares"]
MergeOutputsParams = structures("merge/params.h")["MergeOutputsParams"]
SumGradientsParams = structures("merge/params.h")["SumGradientsParams"]


@dataclass(frozen=True)
class Run:
    """One forward on the emulator.

    Attributes:
        launch: launches the kernel under test, given the kernels, its parameters, the work list, whether elements are
            bfloat16, and the seed of the scheduler.
        block, step: query rows and keys of its tiles.
        workers: more of them cut long tiles into more pieces.
        fill: cut the tiles of a last round, too.
        fused: q, k and v as slices of one tensor, as a projection makes them.
    """

    launch: Callable[[Kernels, Structure, WorkList, bool, int], None]
    block: int
    step: int
    workers: int = 1
    fill: bool = False
    fused: bool = False
    scale: float | None = None

    def scale_of(self, case: Case) -> float:
        return case.the_scale if self.scale is None else self.scale


def forward(kernels: Kernels, run: Run, case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """out and lse of a case, in the dtype of its inputs. Raises if the kernel left an element of either unwritten."""
    inputs = device_inputs(kernels, case, run.fused)
    q, k, v = (inputs[name] for name in "qkv")
    rows, heads, head_dim = q.shape
    work = query_work(case.layout, case.scope, run.block, run.step, heads, run.workers, CPU, run.fill)
    out = kernels.empty((rows, heads, head_dim), q.dtype, "out")
    lse = kernels.empty((rows, heads), torch.float32, "lse")
    part_out = kernels.empty((work.num_slots, heads, run.block, head_dim), torch.float32, "part_out")
    part_lse = kernels.empty((work.num_slots, heads, run.block), torch.float32, "part_lse")
    tiles, merges = kernels.tensor(work.tiles, "tiles"), kernels.tensor(work.merges, "merges")
    own = {"k_tiv": k, "v_tiv": v}  # where the TIV keys have no tensors of their own
    params = ForwardParams(
        **{name: tensor_params(x) for name, x in (own | inputs).items()},
        **addresses(out=out, lse=lse, part_out=part_out, part_lse=part_lse, tiles=tiles),
        num_tiles=work.num_tiles,
        heads=heads,
        group=heads // k.shape[1],
        head_dim=head_dim,
        scale=run.scale_of(case),
    )
    run.launch(kernels, params, work, q.dtype == torch.bfloat16, seed)
    if work.num_merges:
        merge = MergeOutputsParams(
            **addresses(part_out=part_out, part_lse=part_lse, out=out, lse=lse, merges=merges),
            num_merges=work.num_merges,
            heads=heads,
            block=run.block,
            head_dim=head_dim,
        )
        kernels.call("merge_outputs", merge, q.dtype == torch.bfloat16, seed=seed)
    assert kernels.written(out).all() and kernels.written(lse).all()
    return out.clone(), lse.clone()


def check(kernels: Kernels, run: Run, case: Case, dtype: torch.dtype, seed: int = 0) -> None:
    """Assert the error budgets of out and LSE."""
    case = case.to(dtype)
    out, lse = forward(kernels, run, case, seed)
    check_results({"out": out, "lse": lse}, replace(case, scale=run.scale_of(case)), Arithmetic(dtype))


def device_inputs(kernels: Kernels, case: Case, fused: bool) -> dict[str, Tensor]:
    if not fused:
        return {name: kernels.tensor(x, name) for name, x in case.inputs.items()}
    parts = {"qkv": [case.inputs[name] for name in "qkv"]}
    if case.scope == "broadcast":
        parts["kv_tiv"] = [case.inputs[name] for name in ("k_tiv", "v_tiv")]
    joined = {name: kernels.tensor(torch.cat(xs, 1), name) for name, xs in parts.items()}
    split = {name: x.split([part.shape[1] for part in parts[name]], 1) for name, x in joined.items()}
    names = {"qkv": ("q", "k", "v"), "kv_tiv": ("k_tiv", "v_tiv")}
    return {n: x for name, xs in split.items() for n, x in zip(names[name], xs, strict=True)}


def tensor_params(x: Tensor) -> Structure:
    row, head, _ = x.stride()
    return TensorParams(data=x.data_ptr(), row=row, head=head)


def shares_params(kernels: Kernels, shares: Shares) -> Structure:
    """Shares in device memory."""
    order, bounds = kernels.tensor(shares.order, "order"), kernels.tensor(shares.bounds, "bounds")
    return SharesParams(**addresses(order=order, bounds=bounds), blocks=shares.blocks)


def addresses(**tensors: Tensor | None) -> dict[str, int | None]:
    return {name: None if x is None else x.data_ptr() for name, x in tensors.items()}
