"""Clips spread over processes are clips in one process: outputs, LSE, gradients, and how little is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.mark.parametrize("processes", [2, 3])
def test_spread_over_processes(processes: int, torchrun: Callable[..., None]) -> None:
    torchrun(str(WORKER), processes=processes)
