"""Every backend against the float64 oracle, by the error-budget rule (docs/numerics.md).

    max|got - truth| <= 2 * max|eager - truth| + 8 * eps(dtype) * max(1, max|truth|)

``truth`` is the reference backend in float64, ``eager`` the reference backend in the dtype under test, both on the
inputs as that dtype rounds them. The rule holds for the output, the LSE and every gradient, the LSE's included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tivtok_kernels import Scope, SifLayout, broadcast_attention, sif_attention


@dataclass(frozen=True)
class Case:
    """Inputs and output gradients of one call."""

    layout: SifLayout
    scope: Scope
    inputs: dict[str, Tensor]  # q, k, v and, for scope "broadcast", k_tiv, v_tiv
    dout: Tensor
    dlse: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, inputs={n: x.to(dtype) for n, x in self.inputs.items()}, dout=self.dout.to(dtype))


def make_case(
    layout: SifLayout, scope: Scope = "clip", heads: int = 2, kv_heads: int = 2, head_dim: int = 16, seed: int = 0
) -> Case:
    """A float32 case of standard-normal tensors."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    rows = layout.local_tokens if scope == "broadcast" else layout.total_tokens
    inputs = {"q": normal(rows, heads, head_dim)}
    inputs |= {name: normal(rows, kv_heads, head_dim) for name in ("k", "v")}
    if scope == "broadcast":
        inputs |= {name: normal(layout.tiv_tokens, kv_heads, head_dim) for name in ("k_tiv", "v_tiv")}
    return Case(layout, scope, inputs, dout=normal(rows, heads, head_dim), dlse=normal(rows, heads))


def run(case: Case, backend: str, device: str = "cpu") -> dict[str, Tensor]:
    """out, lse and the gradient of every input, through the public API; on the CPU."""
    leaves = {n: x.detach().to(device).requires_grad_() for n, x in case.inputs.items()}
    if case.scope == "broadcast":
        out, lse = broadcast_attention(**leaves, layout=case.layout, backend=backend, return_lse=True)
    else:
        out, lse = sif_attention(**leaves, layout=case.layout, tiv_scope=case.scope, backend=backend, return_lse=True)
    grads = torch.autograd.grad(
        (out, lse), list(leaves.values()), (case.dout.to(out), case.dlse.to(lse)), allow_unused=False
    )
    results = {"out": out, "lse": lse} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: x.detach().cpu() for name, x in results.items()}


def check(case: Case, backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Assert the budget for every result of ``backend`` in ``dtype``."""
    case = case.to(dtype)
    got, eager = run(case, backend, device), run(case, "reference")
    truth = run(case.to(torch.float64), "reference")
    for name in truth:
        assert_within_budget(name, got[name], eager[name], truth[name], dtype)


def assert_within_budget(name: str, got: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    if truth.numel() == 0:
        assert got.shape == truth.shape
        return
    error, eager_error = (float((x.double() - truth).abs().max()) for x in (got, eager))
    budget = 2 * eager_error + 8 * torch.finfo(dtype).eps * max(1.0, float(truth.abs().max()))
    assert error <= budget, f"{name}: error {error:.3g} over its budget {budget:.3g} (eager {eager_error:.3g})"
