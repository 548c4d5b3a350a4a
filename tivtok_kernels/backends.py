"""Which backend runs an operation: one predicate each, one order of preference.

A backend is a module with a predicate (see `reference` for the plainest one)

    why_not(problem) -> str | None          the reason why it cannot run, None if it can

and the operations that it has. Of "attention"

    forward(call) -> (out, lse)
    backward(call, out, lse, dout, dlse) -> [dq, dk, dv] (+ [dk_tiv, dv_tiv])
    plan_call(call, direction)              caches what a call needs of its layout; reads shapes, never elements

which may have a second form of its forward, for calls that differ from ``call`` in addresses and elements alone,

    repeatable(call) -> function of (q, k, v, k_tiv or None, v_tiv or None, wants_lse) that returns (out, lse)

of "prepare_qk"

    prepare_qk(call) -> (q, k)
    prepare_qk_backward(call, dq, dk) -> [dqk] (+ [dq_weight, dk_weight])

and, where kernels are compiled at their first call,

    compile_errors() -> tuple of exception types

and, where it keeps less than the others promise (docs/numerics.md), a sentence for ``tivtok doctor``: CAVEAT.

`Problem`, `Call` and `Preparation` say what these get; ``dlse``, the gradient of the LSE, may be None. Backends never
import one another's modules to run; what they share is in `tensors`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Literal, TypeVar

from tivtok_kernels import measured
from tivtok_kernels.problem import Problem

T = TypeVar("T")

Operation = Literal["attention", "prepare_qk"]

_MODULES = {
    "cuda": "tivtok_kernels.cuda.backend",
    "triton": "tivtok_kernels.triton.backend",
    "cpu": "tivtok_kernels.cpu.backend",
    "sdpa": "tivtok_kernels.sdpa",
    "flex": "tivtok_kernels.flex",
    "reference": "tivtok_kernels.reference",
    "eager": "tivtok_kernels.eager",
}

# In the order in which "auto" tries them where nothing was measured. "flex" is late because nobody has timed it against
# "sdpa".
NAMES: dict[Operation, tuple[str, ...]] = {
    "attention": ("cuda", "triton", "cpu", "sdpa", "flex", "reference"),
    "prepare_qk": ("triton", "eager"),
}


# What "auto" tried and found not to compile.
_does_not_compile: set[tuple[Operation, str, Problem]] = set()


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


@cache
def load(name: str) -> ModuleType:
    return import_module(_MODULES[name])


def why_not(name: str, problem: Problem) -> str | None:
    """The reason why backend ``name`` cannot run ``problem``, None if it can."""
    return load(name).why_not(problem)


def check_name(operation: Operation, name: str) -> None:
    """Raises:
    ValueError: ``name`` is neither "auto" nor a backend that has this operation.
    """
    if name != "auto" and name not in NAMES[operation]:
        raise ValueError(f"backend must be one of {('auto', *NAMES[operation])}, got {name!r}")


@lru_cache(maxsize=1024)
def choose(operation: Operation, name: str, problem: Problem) -> str:
    """The backend that runs ``problem``: the named one or, for "auto", the first that can.

    Raises:
        BackendUnavailable: the named backend cannot run this, with the reason.
    """
    if name != "auto":
        if reason := why_not(name, problem):
            raise BackendUnavailable(f'backend "{name}" cannot run this call: {reason}')
        return name
    for candidate in _auto_order(operation, problem):
        if why_not(candidate, problem) is None:
            return candidate
    raise BackendUnavailable(f"no backend is left that can run {problem}")


def run(operation: Operation, name: str, problem: Problem, call: Callable[[ModuleType], T]) -> T:
    """``call`` with the module of `choose`.

    Where a kernel of a backend that "auto" chose does not compile, that is said once, and the next one takes over, for
    this and later calls. The errors are those that the module lists as `compile_errors`.

    Raises:
        BackendUnavailable: as `choose`.
    """
    while True:
        chosen = choose(operation, name, problem)
        module = load(chosen)
        try:
            return call(module)
        except Exception as error:
            if name != "auto" or not isinstance(error, getattr(module, "compile_errors", tuple)()):
                raise
            _does_not_compile.add((operation, chosen, problem))
            choose.cache_clear()
            warnings.warn(
                f'backend "{chosen}" cannot compile its kernels for {problem}; "auto" goes on to '
                f'"{choose(operation, name, problem)}": {error}',
                stacklevel=2,
            )


def _auto_order(operation: Operation, problem: Problem) -> tuple[str, ...]:
    """The measured ones, the fastest first (see `measured`), then the others in the order of `NAMES`.

    Unmeasured, "cuda" is left out, "cpu" where torch may be faster, and on the CPU "triton" and "flex", which are there
    for tests.
    """
    timed = measured.fastest(problem.device, measured.backend_question(problem)) if operation == "attention" else ()
    skipped = {"cuda"}
    if not load("cpu").wins(problem):
        skipped.add("cpu")
    if problem.device.type == "cpu":
        skipped |= {"triton", "flex"}
    others = tuple(name for name in NAMES[operation] if name not in skipped)
    order = dict.fromkeys(name for name in (*timed, *others) if name in NAMES[operation])
    return tuple(name for name in order if (operation, name, problem) not in _does_not_compile)
