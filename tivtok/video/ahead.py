"""Work done ahead of who needs it: in a thread, or on a GPU in a stream of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

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


def on_device(chunks: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Copy ``chunks`` to ``device``, in order.

    To an NVIDIA GPU each is copied from pinned memory, in a stream of their own, while the one before it is in use.
    """
    if device.type != "cuda":
        yield from (chunk.to(device) for chunk in chunks)
        return
    copying = torch.cuda.Stream(device)
    before: tuple[Tensor, torch.cuda.Event] | None = None
    for chunk in chunks:
        with torch.cuda.stream(copying):
            coming = chunk.pin_memory().to(device, non_blocking=True)
            copied = copying.record_event()
        if before is not None:
            yield _in_use(*before)
        before = coming, copied
    if before is not None:
        yield _in_use(*before)


def _in_use(coming: Tensor, copied: torch.cuda.Event) -> Tensor:
    """The copy, for what is computed from here on in the current stream."""
    using = torch.cuda.current_stream(coming.device)
    using.wait_event(copied)
    coming.record_stream(using)  # its memory is not given away before that is done
    return coming
