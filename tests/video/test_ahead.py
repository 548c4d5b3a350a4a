"""Frames read in a thread: the same ones in the same order, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest

from tivtok.video.ahead import ahead


class Numbers:
    """0, 1, 2, ... until there are ``count``, or then an error; keeps what it has given and whether it was closed."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error = count, error
        self.given = 0
        self.closed = False

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self.count):
                self.given = number + 1
                yield number
            if self.error:
                raise self.error
        finally:
            self.closed = True


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_all_in_order(count: int) -> None:
    assert list(ahead(Numbers(count)(), 2)) == list(range(count))


def test_an_error_comes_where_its_item_would_have() -> None:
    got = []
    with pytest.raises(ValueError, match="broken"):
        for number in ahead(Numbers(3, ValueError("broken"))(), 2):
            got.append(number)
    assert got == [0, 1, 2]


def test_no_more_than_asked_for_is_made_ahead() -> None:
    numbers = Numbers(100)
    for number in ahead(numbers(), 2):
        assert numbers.given <= number + 3
    assert numbers.given == 100


@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
def test_who_stops_early_closes_what_is_read(stop: type[BaseException]) -> None:
    numbers = Numbers(100)
    items = ahead(numbers())
    next(items)
    with pytest.raises(stop):
        items.throw(stop())
    assert numbers.closed and numbers.given < 4
