"""The model on clips whose frame groups are spread over processes: tokens and a training step are one process's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

WORKER = Path(__file__).with_name("spread_worker.py")


def test_encoding_and_training_step(torchrun: Callable[..., None]) -> None:
    torchrun(str(WORKER))
