"""What Python does in a call, counted: host time without a clock."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Hold the garbage collector back: when it comes depends on what ran before, and it calls functions of others."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def calls_in(function: Callable[[], object]) -> int:
    """Functions that Python calls, its own and C's, in a call of ``function``."""
    seen: list[str] = []
    with nothing_collected():
        sys.setprofile(lambda frame, event, argument: seen.append(event) if event.endswith("call") else None)
        try:
            function()
        finally:
            sys.setprofile(None)
    return len(seen)
