"""`pytest benchmarks/ --benchmark-only`: encode, decode and a training step of each preset."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from benchmarks.compare import Measurement
from benchmarks.model.models import ModelCase, measure_model, model_cases

SECONDS_PER_MODEL = 3.0

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def measured(case: ModelCase) -> Measurement:
    return measure_model(case, DEVICE, SECONDS_PER_MODEL)


@pytest.mark.parametrize(
    ("case", "stage"),
    [pytest.param(case, stage, id=f"{case.title} {stage}") for case in model_cases(DEVICE) for stage in case.stages],
)
def test_model(case: ModelCase, stage: str, benchmark, report_rounds: Callable[[list[float]], None]) -> None:
    record, samples = measured(case)
    benchmark.group = case.title
    report_rounds(samples[stage])
    benchmark.extra_info |= record["stages"][stage]
