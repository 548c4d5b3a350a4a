"""pytest-benchmark over measurements that are already taken.

pytest-benchmark times one function after another. Here all peers of a case take turns (A B A B ...), so they are
measured together and pytest-benchmark is then given a clock on which each round lasts as long as it did.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


class RecordedClock:
    """A timer that advances only by recorded seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = RecordedClock()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture
def report_rounds(benchmark) -> Callable[[list[float]], None]:
    """Hand recorded rounds, in seconds, to pytest-benchmark."""

    def report(samples: list[float]) -> None:
        rounds = iter(samples)
        benchmark.pedantic(CLOCK.advance, setup=lambda: ((next(rounds),), {}), rounds=len(samples))

    return report
