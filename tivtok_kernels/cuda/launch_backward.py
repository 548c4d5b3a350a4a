"""The backward from tensors to launches; plans as in `launch`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tivtok_kernels.cuda import configs, extension, shares
from tivtok_kernels.cuda.launch import (
    Heads,
    address,
    addressable,
    current_stream,
    native_shape,
    native_shares,
    native_work,
    strided,
)
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.problem import Call
from tivtok_kernels.ranges import RangeLayout
from tivtok_kernels.schedule import WorkList, check_plannable, hold, key_work, query_work


class BackwardPlan(NamedTuple):
    """A backward over one layout.

    Attributes:
        native: the extension's half, which knows the addresses of all lists.
        shares: of the persistent kernel (Hopper).
        query_parts, key_parts: (slots, heads, rows per tile), of the pieces of split tiles.
    """

    native: extension.BackwardPlan
    queries: WorkList
    keys: WorkList
    shares: shares.Shares | None
    query_parts: tuple[int, int, int]
    key_parts: tuple[int, int, int]


def plan_call(call: Call) -> BackwardPlan:
    return _backward_plan(call.layout, call.scope, Heads.of(call), call.q.dtype, call.q.device)


def backward(call: Call, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> list[Tensor]:
    """dq, dk, dv and, with the TIV keys apart, dk_tiv, dv_tiv."""
    rows, heads, head_dim = call.q.shape
    plan = plan_call(call)
    hold(plan, call.q.device, plan.queries, plan.keys, plan.shares)
    q, dout, k, v, k_tiv, v_tiv = map(addressable, (call.q, dout, call.k, call.v, *call.tiv_or_own))
    out = addressable(out)  # hooks on saved tensors may have put it anywhere
    dlse = None if dlse is None else dlse.contiguous()
    stats = torch.empty((heads, rows, 2), dtype=torch.float32, device=q.device)
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, *(call.tiv or ()))]
    dq, dk, dv, dk_tiv, dv_tiv = grads if call.tiv else [*grads, *grads[1:]]
    part_dq, part_dk, part_dv = (
        torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device) if shape[0] else None
        for shape in (plan.query_parts, plan.key_parts, plan.key_parts)
    )
    plan.native.launch(
        current_stream(q),
        {
            "scale": call.scale,
            "rows": rows,
            "q": strided(q),
            "dout": strided(dout),
            "k": strided(k),
            "v": strided(v),
            "k_tiv": strided(k_tiv),
            "v_tiv": strided(v_tiv),
            "out": out.data_ptr(),
            "lse": lse.data_ptr(),
            "dlse": address(dlse),
            "row_stats": stats.data_ptr(),
            "dq": dq.data_ptr(),
            "dk": dk.data_ptr(),
            "dv": dv.data_ptr(),
            "dk_tiv": dk_tiv.data_ptr(),
            "dv_tiv": dv_tiv.data_ptr(),
            "part_dq": address(part_dq),
            "part_dk": address(part_dk),
            "part_dv": address(part_dv),
        },
    )
    return grads


@lru_cache(maxsize=1024)
def _backward_plan(
    layout: SifLayout | RangeLayout, scope: Scope, heads: Heads, dtype: torch.dtype, device: torch.device
) -> BackwardPlan:
    check_plannable(device)
    engine = configs.engine(device, heads.head_dim, has_hopper=extension.HAS_HOPPER)
    kv_heads, processors = heads.heads // heads.group, configs.multiprocessors(device)
    tile = extension.gradient_tile(engine, extension.Owner.queries, heads.head_dim)
    key_tile = extension.gradient_tile(engine, extension.Owner.keys, heads.head_dim)
    queries = query_work(layout, scope, tile.owned, tile.walked, heads.heads, processors * tile.blocks_per_sm, device)
    keys = key_work(
        layout, scope, key_tile.owned, key_tile.walked, kv_heads, processors * key_tile.blocks_per_sm, device
    )
    items = None
    if engine == "hopper":
        walked = tile.walked, key_tile.walked
        both = shares.gradient_items(queries, keys, heads.heads, heads.group, walked)
        items = shares.by_length(both, processors, device)
    native = extension.BackwardPlan(
        engine,
        native_shape(heads, dtype, device),
        queries=native_work(queries, tile.owned),
        keys=native_work(keys, key_tile.owned),
        shares=items and native_shares(items),
    )
    query_parts = (queries.num_slots, heads.heads, tile.owned)
    return BackwardPlan(native, queries, keys, items, query_parts, (keys.num_slots, kv_heads, key_tile.owned))
