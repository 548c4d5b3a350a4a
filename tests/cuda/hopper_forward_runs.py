"""The Hopper forward on the emulator: what it takes beside the parameters of every forward, and how it is launched."""

from __future__ import annotations

import ctypes

from forward_runs import Run, structure
from oracle import Case

from tivtok_kernels.cuda import shares

BLOCK_Q = 128
STEP = 32  # keys

RowCounts = structure("RowCounts", q=ctypes.c_int64, k=ctypes.c_int64, tiv=ctypes.c_int64)
Shares = structure("Shares", order=ctypes.c_void_p, bounds=ctypes.c_void_p, blocks=ctypes.c_int32)


def run_of(case: Case, blocks: int = 2, block: int = BLOCK_Q, step: int = STEP, **options) -> Run:
    """A run of the kernel on ``blocks`` blocks."""
    rows, key_rows = (len(case.inputs[name]) for name in "qk")
    counts = RowCounts(rows, key_rows, len(case.inputs["k_tiv"]) if case.scope == "broadcast" else key_rows)

    def launch(kernels, params, work, is_bf16, seed):
        share = shares.by_length(work, params.heads, blocks, step)
        order, bounds = kernels.tensor(share.order, "order"), kernels.tensor(share.bounds, "bounds")
        pointers = Shares(order.data_ptr(), bounds.data_ptr(), blocks)
        kernels.call("forward", params, counts, pointers, is_bf16, seed=seed)

    return Run(launch, block, step, **options)
