"""Work done in a thread, ahead of who needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

_END: Any = object()


def ahead(items: Generator[Item, None, None], count: int = 1) -> Iterator[Item]:
    """Pass ``items`` on in order, made in a thread while those before are in use: at most ``count`` wait at a time.

    An error in ``items`` comes where its item would have. Who stops early, with an error or ctrl-C, waits for the item
    in work and leaves no thread behind.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = deque(thread.submit(next, items, _END) for _ in range(count))
        try:
            while (item := coming.popleft().result()) is not _END:
                coming.append(thread.submit(next, items, _END))
                yield item
        finally:
            for future in coming:
                future.cancel()
            thread.submit(items.close).result()
