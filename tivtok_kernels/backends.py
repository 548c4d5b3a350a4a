"""Which backend: one predicate each, one order of preference.

A backend is a module with three functions (see `reference` for the plainest one):

    why_not(problem) -> str | None          the reason why it cannot run, None if it can
    forward(call) -> (out, lse)
    backward(call, out, lse, dout, dlse) -> [dq, dk, dv] (+ [dk_tiv, dv_tiv])

`Problem` and `Call` say what these get; ``dlse``, the gradient of the LSE, may be None. Backends never import one
another's modules to run; the helpers of `reference` are shared vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType

from tivtok_kernels.problem import Problem

# In the order in which "auto" tries them.
_MODULES = {
    "cuda": "tivtok_kernels.cuda.backend",
    "triton": "tivtok_kernels.triton.backend",
    "cpu": "tivtok_kernels.cpu.backend",
    "sdpa": "tivtok_kernels.sdpa",
    "reference": "tivtok_kernels.reference",
}

NAMES = tuple(_MODULES)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


def load(name: str) -> ModuleType:
    return import_module(_MODULES[name])


def why_not(name: str, problem: Problem) -> str | None:
    """The reason why backend ``name`` cannot run ``problem``, None if it can."""
    return load(name).why_not(problem)


@lru_cache(maxsize=1024)
def select(name: str, problem: Problem) -> ModuleType:
    """The module that runs ``problem``: the named backend or, for "auto", the first that can.

    Raises:
        BackendUnavailable: the named backend cannot run this, with the reason.
    """
    for candidate in _auto_order(problem) if name == "auto" else (name,):
        reason = why_not(candidate, problem)
        if reason is None:
            return load(candidate)
    raise BackendUnavailable(f'backend "{candidate}" cannot run this call: {reason}')


def _auto_order(problem: Problem) -> tuple[str, ...]:
    """ "cuda" and "cpu" unless others may be faster. On the CPU "triton" is its interpreter, made for tests."""
    skipped = {name for name in ("cuda", "cpu") if not load(name).wins(problem)}
    if problem.device.type == "cpu":
        skipped.add("triton")
    return tuple(name for name in NAMES if name not in skipped)
