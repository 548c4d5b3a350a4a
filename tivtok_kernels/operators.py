"""How this package registers operators with torch: schema, implementation, fake kernel, derivatives; all in one way.

Written against `torch.library.Library` and not with the ``custom_op`` decorator, whose generic wrappers would add to
the host time of every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing_state
from torch._C import _len_torch_dispatch_stack as num_dispatch_modes
from torch._C import _len_torch_function_stack as num_function_modes
from torch._C._autograd import _profiler_enabled as is_profiling

from tivtok_kernels import derivatives

_PLAIN = (Tensor, torch.nn.Parameter)

_library = torch.library.Library("tivtok", "DEF")


def define(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any], tags: Sequence[torch.Tag] = ()
) -> torch._ops.OpOverload:
    """The operator ``tivtok::<schema>``, without derivatives so far."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=tuple(tags))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tivtok::{name}", fake, lib=_library)
    return getattr(torch.ops.tivtok, name).default


def set_derivative(
    operator: torch._ops.OpOverload,
    apply: Callable[..., Any],
    *,
    tensors: int,
    function: str,
    backend: Callable[[Sequence[Any]], str],
    better: str,
) -> None:
    """Have ``apply`` run in place of ``operator`` when one of its first ``tensors`` arguments requires grad.

    Other derivatives raise an error that names the public ``function``, the backend (``backend`` finds it among the
    arguments), and the ``better`` backend, which has them.
    """

    def differentiable(*inputs: Any) -> Any:
        if derivatives.transforms_active():
            derivatives.refuse_transforms(function, backend(inputs), better, inputs[:tensors])
        if derivatives.need_grad(inputs[:tensors]):
            return apply(*inputs)
        return below_autograd(operator, *inputs)

    _library.impl(operator.name().partition("::")[2], differentiable, "Autograd")


def below_autograd(operator: Callable[..., Any], *inputs: Any) -> Any:
    """Call ``operator(*inputs)`` below autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs)


def are_watched(tensors: Sequence[Tensor | None]) -> bool:
    """Whether somebody has to see operators as such: a mode, a tracer, a profiler, or a tensor of a type of its own."""
    for x in tensors:
        if x is not None and type(x) not in _PLAIN:
            return True
    return bool(num_dispatch_modes() or num_function_modes() or is_profiling() or tracing_state() is not None)


@contextmanager
def recorded() -> Iterator[None]:
    """Let autograd record what an operator's implementation calls, though it runs below autograd."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradOther", "AutogradFunctionality", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def present(*tensors: Tensor | None) -> list[Tensor]:
    """Those that are not None."""
    return [x for x in tensors if x is not None]


def empty_gradients(*tensors: Tensor | None) -> list[Tensor]:
    """Uninitialised contiguous gradients of the ``tensors`` that are present."""
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in present(*tensors)]


def zero_gradients(*tensors: Tensor | None) -> list[Tensor]:
    """Contiguous zero gradients of the ``tensors`` that are present."""
    return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in present(*tensors)]
