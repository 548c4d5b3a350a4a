"""Which backend: one predicate each, one order of preference.

A backend is a module with three functions (see `reference` for the plainest one):

    why_not(problem) -> str | None          the reason why it cannot run, None if it can
    forward(q, k, v, tiv, layout, scope, scale) -> (out, lse)
    backward(dout, dlse, q, k, v, tiv, out, lse, layout, scope, scale) -> [dq, dk, dv] (+ [dk_tiv, dv_tiv])

Tensors arrive packed: q (N, H, D), k and v (M, Hk, D), ``tiv`` None or (k_tiv, v_tiv) with scope "broadcast"; they are
validated, have a contiguous last dimension and at least one row. Backends never import one another's modules to run;
the helpers of `reference` are shared vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType

from tivtok_kernels.problem import Problem

# In the order in which "auto" tries them.
_MODULES = {
    "triton": "tivtok_kernels.triton.backend",
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
    """On the CPU "triton" is its interpreter, made for tests: it runs when asked for by name."""
    return tuple(name for name in NAMES if not (name == "triton" and problem.device.type == "cpu"))
