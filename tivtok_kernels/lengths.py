"""Reading lengths that users give."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import accumulate


def as_lengths(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """``values`` as integers >= 0.

    Raises:
        TypeError: they are not integers.
        ValueError: one of them is negative.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    values = tuple(values)
    try:
        lengths = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name} must hold integers, got {values!r}") from None
    for i, n in enumerate(lengths):
        if n < 0:
            raise ValueError(f"{name}[{i}] must be >= 0, got {n} in {list(lengths)}")
    return lengths


def as_length(name: str, value: int) -> int:
    """``value`` as an integer >= 0.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is negative.
    """
    try:
        length = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if length < 0:
        raise ValueError(f"{name} must be >= 0, got {length}")
    return length


def boundaries(lengths: Iterable[int], first: int = 0) -> list[int]:
    """Where consecutive pieces of these lengths begin and end."""
    return list(accumulate(lengths, initial=first))
