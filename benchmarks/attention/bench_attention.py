"""`pytest benchmarks/ --benchmark-only`: every peer on every case of the grid, a table per case."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from benchmarks.attention.cases import Case, cases
from benchmarks.compare import Measurement, all_peers, measure

SECONDS_PER_CASE = 5.0

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def measured(case: Case) -> Measurement:
    return measure(case, DEVICE, SECONDS_PER_CASE)


@pytest.mark.parametrize("peer", [peer.name for peer in all_peers()])
@pytest.mark.parametrize("case", cases(DEVICE), ids=lambda case: case.title)
def test_attention(case: Case, peer: str, benchmark, report_rounds: Callable[[list[float]], None]) -> None:
    record, samples = measured(case)
    if peer in record["left_out"]:
        pytest.skip(record["left_out"][peer])
    assert peer not in record["refused"], record["refused"][peer]
    benchmark.group = case.title
    report_rounds(samples[peer])
    result = record["peers"][peer]
    benchmark.extra_info |= {key: result[key] for key in ("flops_per_s", "of_ceiling", "peak_bytes", "first_call_s")}
