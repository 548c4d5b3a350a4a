"""From tensors to launches. A call with a layout seen before allocates its results and calls the extension once.

Plans hold everything else: which kernel, its work list on the device, the launch geometry.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tivtok_kernels.cuda import configs, extension, shares
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Call
from tivtok_kernels.ranges import RangeLayout
from tivtok_kernels.schedule import WorkList, check_plannable, hold, query_work
from tivtok_kernels.tensors import aligned

MAX_ROW_STRIDE = 1 << 30  # elements: kernels count row strides in bytes, as 32-bit integers


class Heads(NamedTuple):
    """The shape of a call but for its rows."""

    heads: int
    group: int  # query heads per key head
    head_dim: int

    @classmethod
    def of(cls, call: Call) -> Heads:
        return cls(call.q.shape[1], call.q.shape[1] // call.k.shape[1], call.q.shape[2])


class ForwardPlan(NamedTuple):
    """A forward over one layout.

    Attributes:
        native: the extension's half, which knows the addresses of the lists in ``work`` and ``shares``.
        part_shape: (slots, H, query rows per tile), of the pieces of split tiles.
    """

    native: extension.ForwardPlan
    work: WorkList
    shares: shares.Shares | None
    part_shape: tuple[int, int, int]


def plan_call(call: Call) -> ForwardPlan:
    return _forward_plan(call.layout, call.scope, Heads.of(call), call.q.dtype, call.q.device)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    plan = plan_call(call)
    hold(plan, call.q.device, plan.work, plan.shares)
    q, k, v, k_tiv, v_tiv = map(addressable, (call.q, call.k, call.v, *call.tiv_or_own))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    part_out = part_lse = None
    if plan.work.num_slots:
        part_out = torch.empty((*plan.part_shape, q.shape[2]), dtype=torch.float32, device=q.device)
        part_lse = torch.empty(plan.part_shape, dtype=torch.float32, device=q.device)
    plan.native.launch(
        current_stream(q),
        {
            "scale": call.scale,
            "q": strided(q),
            "k": strided(k),
            "v": strided(v),
            "k_tiv": strided(k_tiv),
            "v_tiv": strided(v_tiv),
            "out": out.data_ptr(),
            "lse": lse.data_ptr(),
            "part_out": address(part_out),
            "part_lse": address(part_lse),
        },
    )
    return out, lse


@lru_cache(maxsize=1024)
def _forward_plan(
    layout: SifLayout | RangeLayout, scope: Scope, heads: Heads, dtype: torch.dtype, device: torch.device
) -> ForwardPlan:
    check_plannable(device)  # its work list may be there already, for another dtype
    engine = configs.engine(device, heads.head_dim, has_hopper=extension.HAS_HOPPER)
    build = _hopper_forward if engine == "hopper" else _ampere_forward
    return build(layout, scope, heads, dtype, device)


def _ampere_forward(
    layout: SifLayout | RangeLayout, scope: Scope, heads: Heads, dtype: torch.dtype, device: torch.device
) -> ForwardPlan:
    tile = extension.ampere_forward_tile(heads.head_dim)
    workers = configs.multiprocessors(device) * tile.blocks_per_sm
    work = query_work(layout, scope, tile.block_q, tile.block_k, heads.heads, workers, device)
    native = extension.AmpereForward(native_shape(heads, dtype, device), native_work(work, tile.block_q))
    return ForwardPlan(native, work, None, (work.num_slots, heads.heads, tile.block_q))


def _hopper_forward(
    layout: SifLayout | RangeLayout, scope: Scope, heads: Heads, dtype: torch.dtype, device: torch.device
) -> ForwardPlan:
    tile = extension.hopper_forward_tile(heads.head_dim)
    workers = configs.multiprocessors(device) * tile.blocks_per_sm
    work = query_work(layout, scope, tile.block_q, tile.block_k, heads.heads, workers, device, fill=True)
    items = shares.by_length([shares.Items(work, heads.heads, tile.block_k)], workers, device)
    ranges = layout.ranges(scope)
    native = extension.HopperForward(
        native_shape(heads, dtype, device),
        native_work(work, tile.block_q),
        extension.RowCounts(
            q=ranges.q_rows,
            k=ranges.k_rows,
            tiv=ranges.k_rows if ranges.a_rows is None else ranges.a_rows,
        ),
        native_shares(items),
    )
    return ForwardPlan(native, work, items, (work.num_slots, heads.heads, tile.block_q))


def native_shape(heads: Heads, dtype: torch.dtype, device: torch.device) -> extension.Shape:
    return extension.Shape(device=device.index, dtype=str(dtype).removeprefix("torch."), **heads._asdict())


def native_work(work: WorkList, block: int) -> extension.Work:
    return extension.Work(
        tiles=work.tiles.data_ptr(),
        num_tiles=work.num_tiles,
        merges=work.merges.data_ptr(),
        num_merges=work.num_merges,
        block=block,
    )


def native_shares(items: shares.Shares) -> extension.Shares:
    return extension.Shares(order=items.order.data_ptr(), bounds=items.bounds.data_ptr(), blocks=items.blocks)


def strided(x: Tensor) -> extension.Strided:
    row, head, _ = x.stride()
    return x.data_ptr(), row, head


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def current_stream(x: Tensor) -> int:
    """What torch.cuda.current_stream wraps in an object."""
    return torch._C._cuda_getCurrentRawStream(x.device.index)


def addressable(x: Tensor) -> Tensor:
    """x (rows, heads, head_dim) itself if its rows are aligned and TMA can express its strides, else a copy."""
    return aligned(x, expanded=False, max_row_stride=MAX_ROW_STRIDE)
