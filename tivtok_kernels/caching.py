"""Caching and constants for functions that are also called inside compiled models."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")


def traceable_cache(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Cache a pure function with `lru_cache`. torch.compile traces the function itself, since it warns of caches."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        cached = cast("Callable[P, T]", lru_cache(maxsize)(function))

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **kwargs) if torch.compiler.is_compiling() else cached(*args, **kwargs)

        return call

    return decorate


def constant_when_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function that torch.compile is to call once, while it traces, and whose result it is to keep.

    Sets what `torch.compiler.assume_constant_result` sets. The decorator itself imports the compiler, a thousand
    modules, into programs that compile nothing.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
