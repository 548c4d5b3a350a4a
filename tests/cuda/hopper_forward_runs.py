"""The Hopper forward on the emulator: what it takes beside the parameters of every forward, and how it is launched."""

from __future__ import annotations

from forward_runs import CPU, Run, shares_params
from oracle import Case
from structures import structures

from tivtok_kernels.cuda import shares

BLOCK_Q = 128
STEP = 32  # keys

RowCounts = structures("forward/hopper/row_counts.h")["RowCounts"]


def run_of(case: Case, blocks: int = 2, block: int = BLOCK_Q, step: int = STEP, **options) -> Run:
    """A run of the kernel on ``blocks`` blocks."""
    rows, key_rows = (len(case.inputs[name]) for name in "qk")
    tiv_rows = len(case.inputs["k_tiv"]) if case.scope == "broadcast" else key_rows
    counts = RowCounts(q=rows, k=key_rows, tiv=tiv_rows)

    def launch(kernels, params, work, is_bf16, seed):
        share = shares.by_length([shares.Items(work, params.heads, step)], blocks, CPU)
        kernels.call("forward", params, counts, shares_params(kernels, share), is_bf16, seed=seed)

    return Run(launch, block, step, **options)
