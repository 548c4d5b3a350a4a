"""Frames read in a thread: the same ones in the same order, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tivtok.video.ahead import ahead, on_device


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
    before = threading.enumerate()
    yield
    assert not set(threading.enumerate()).difference(before)  # those of other tests may end meanwhile


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


class Streams:
    """Stands in for torch.cuda: notes what is asked of it, in order, and computes nothing on a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[Any] = []
        self.current = "main"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", self.within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(Tensor, "pin_memory", lambda chunk: self.say("pin", chunk) or chunk.clone())
        monkeypatch.setattr(Tensor, "to", lambda chunk, device, non_blocking=False: self.copied(chunk, non_blocking))
        monkeypatch.setattr(Tensor, "record_stream", lambda chunk, stream: self.say("keep", chunk))

    def say(self, what: str, chunk: Tensor) -> None:
        self.said.append((what, int(chunk[0]), self.current))

    def within(self, stream: Any) -> Any:
        assert stream is self
        return self

    def __enter__(self) -> None:
        self.current = "side"

    def __exit__(self, *_: object) -> None:
        self.current = "main"

    def copied(self, chunk: Tensor, non_blocking: bool) -> Tensor:
        assert non_blocking
        self.say("copy", chunk)
        return chunk.clone()

    def record_event(self) -> int:
        return len(self.said)

    def wait_event(self, event: int) -> None:
        self.said.append(("wait", self.said[event - 1][1], self.current))


def test_copies_to_a_gpu_go_ahead_of_their_use(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    device: Any = SimpleNamespace(type="cuda")
    for chunk in on_device((torch.full((2,), n) for n in range(3)), device):
        streams.say("use", chunk)
    for n in range(3):
        of_it = [(what, where) for what, number, where in streams.said if number == n]
        assert of_it == [("pin", "side"), ("copy", "side"), ("wait", "main"), ("keep", "main"), ("use", "main")]
    assert streams.said.index(("copy", 1, "side")) < streams.said.index(("use", 0, "main"))
    assert streams.said.index(("copy", 2, "side")) > streams.said.index(("use", 0, "main"))  # one ahead, no more


def test_on_the_cpu_chunks_pass() -> None:
    chunks = [torch.zeros(1), torch.ones(1)]
    assert all(one is other for one, other in zip(on_device(chunks, torch.device("cpu")), chunks, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_they_are_equal() -> None:
    chunks = [torch.full((16, 256, 256, 3), n, dtype=torch.uint8) for n in range(20)]
    sums = [int(chunk.sum()) for chunk in on_device(chunks, torch.device("cuda"))]
    assert sums == [int(chunk.sum()) for chunk in chunks]
