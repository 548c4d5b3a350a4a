"""Errors for derivatives that the operators of this package do not have, where torch would give silent zeros.

Their formulas give first derivatives in reverse mode. In forward mode (dual numbers, torch.func.jvp) and for
derivatives of gradients (create_graph=True) torch would take their results for constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether dual numbers or transforms of torch.func may be in use. Costs next to nothing."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def need_grad(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


def refuse_transforms(function: str, backend: str, better: str, tensors: Sequence[Tensor | None]) -> None:
    """For the autograd kernel of an operator, while `transforms_active`.

    Raises:
        NotImplementedError: one of its arguments is a dual number, or is differentiated by torch.func.
    """
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise no_forward_mode(function, backend, better)
    if torch._C._are_functorch_transforms_active() and need_grad(tensors):
        refused = "derivative by torch.func (torch.autograd.grad gives the same)"
        raise NotImplementedError(f'backend "{backend}" of {function} has no {refused}; "{better}" has one')


def no_forward_mode(function: str, backend: str, better: str) -> NotImplementedError:
    return NotImplementedError(
        f'backend "{backend}" of {function} has no forward-mode derivative (dual numbers, torch.func.jvp); '
        f'"{better}" has one'
    )


def differentiable_once(
    function: str,
    backend: str,
    better: str,
    operator: Callable[..., list[Tensor]],
    inputs: Sequence[Any],
    vmap: Callable[..., Any] | None = None,
) -> list[Tensor]:
    """``operator(*inputs)``, gradients that raise NotImplementedError when they are differentiated themselves.

    Args:
        vmap: the rule of torch.func.vmap, as an autograd.Function has it, for ``inputs``.
    """
    return list(_Once.apply((function, backend, better), operator, vmap, *inputs))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(names: tuple[str, str, str], operator: Any, vmap: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(operator(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.names = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        function, backend, better = ctx.names
        raise NotImplementedError(
            f'gradients that backend "{backend}" of {function} gives cannot be differentiated again '
            f'(create_graph=True); those of "{better}" can'
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise no_forward_mode(*ctx.names)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], names: Any, operator: Any, vmap: Any, *inputs: Any) -> Any:
        return vmap(info, in_dims[3:], *inputs)
