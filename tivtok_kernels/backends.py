"""Which backend runs an operation: one predicate each, one order of preference.

A backend is a module with a predicate (see `reference` for the plainest one)

    why_not(problem) -> str | None          the reason why it cannot run, None if it can

and the operations that it has. Of "attention":

    forward(call) -> (out, lse)
    backward(call, out, lse, dout, dlse) -> [dq, dk, dv] (+ [dk_tiv, dv_tiv])

Of "prepare_qk": `eager.prepare_qk`, or kernels with the arguments of the operators in `ops_prepare`.

`Problem` and `Call` say what these get; ``dlse``, the gradient of the LSE, may be None. Backends never import one
another's modules to run; what they share is in `tensors`.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Literal

from tivtok_kernels.problem import Problem

Operation = Literal["attention", "prepare_qk"]

_MODULES = {
    "cuda": "tivtok_kernels.cuda.backend",
    "triton": "tivtok_kernels.triton.backend",
    "cpu": "tivtok_kernels.cpu.backend",
    "sdpa": "tivtok_kernels.sdpa",
    "reference": "tivtok_kernels.reference",
    "eager": "tivtok_kernels.eager",
}

# In the order in which "auto" tries them.
NAMES: dict[Operation, tuple[str, ...]] = {
    "attention": ("cuda", "triton", "cpu", "sdpa", "reference"),
    "prepare_qk": ("triton", "eager"),
}


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
    for candidate in _auto_order(operation, problem) if name == "auto" else (name,):
        reason = why_not(candidate, problem)
        if reason is None:
            return candidate
    raise BackendUnavailable(f'backend "{candidate}" cannot run this call: {reason}')


def select(operation: Operation, name: str, problem: Problem) -> ModuleType:
    """The module of `choose`."""
    return load(choose(operation, name, problem))


def _auto_order(operation: Operation, problem: Problem) -> tuple[str, ...]:
    """ "cuda" and "cpu" unless others may be faster. On the CPU "triton" is its interpreter, made for tests."""
    skipped = {name for name in ("cuda", "cpu") if not load(name).wins(problem)}
    if problem.device.type == "cpu":
        skipped.add("triton")
    return tuple(name for name in NAMES[operation] if name not in skipped)
