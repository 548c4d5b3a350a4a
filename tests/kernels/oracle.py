"""Every backend against the float64 oracle, element by element, by error budgets (docs/numerics.md).

    |got - truth| <= budget

``truth`` is the reference backend in float64 on the inputs as the dtype under test rounds them. ``budget`` bounds the
rounding errors of a backend's algorithm on these inputs. The rule holds for the output, the LSE and every gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tivtok_kernels import Scope, SifLayout, broadcast_attention, error_budgets, sif_attention
from tivtok_kernels.error_budgets import Arithmetic


@dataclass(frozen=True)
class Case:
    """Inputs and output gradients of one call."""

    layout: SifLayout
    scope: Scope
    inputs: dict[str, Tensor]  # q, k, v and, for scope "broadcast", k_tiv, v_tiv
    dout: Tensor
    dlse: Tensor | None
    scale: float | None = None

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, inputs={n: x.to(dtype) for n, x in self.inputs.items()}, dout=self.dout.to(dtype))

    @property
    def the_scale(self) -> float:
        return self.inputs["q"].shape[-1] ** -0.5 if self.scale is None else self.scale


def make_case(
    layout: SifLayout,
    scope: Scope = "clip",
    heads: int = 2,
    kv_heads: int = 2,
    head_dim: int = 16,
    seed: int = 0,
    scale: float | None = None,
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
    return Case(layout, scope, inputs, dout=normal(rows, heads, head_dim), dlse=normal(rows, heads), scale=scale)


def run(case: Case, backend: str, device: str = "cpu") -> dict[str, Tensor]:
    """out, lse and the gradient of every input, through the public API; on the CPU."""
    leaves = {n: x.detach().to(device).requires_grad_() for n, x in case.inputs.items()}
    options = {"layout": case.layout, "scale": case.scale, "backend": backend, "return_lse": True}
    if case.scope == "broadcast":
        out, lse = broadcast_attention(**leaves, **options)
    else:
        out, lse = sif_attention(**leaves, **options, tiv_scope=case.scope)
    results, grads_in = [out], [case.dout.to(out)]
    if case.dlse is not None:
        results, grads_in = [out, lse], [*grads_in, case.dlse.to(lse)]
    grads = torch.autograd.grad(results, list(leaves.values()), grads_in)
    named = {"out": out, "lse": lse} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: x.detach().cpu() for name, x in named.items()}


def check(case: Case, backend: str, dtype: torch.dtype, device: str = "cpu") -> float:
    """Assert the budget of every result of ``backend`` in ``dtype``; returns the largest error in budgets."""
    case = case.to(dtype)
    return check_results(run(case, backend, device), case, Arithmetic.of(backend, dtype))


def check_results(got: Mapping[str, Tensor], case: Case, arithmetic: Arithmetic) -> float:
    """Assert the budget of all results in ``got``; returns the largest error in budgets.

    Args:
        case: its inputs and dout as the dtype under test has rounded them.
    """
    truth, budget = run(case.to(torch.float64), "reference"), budgets(case, arithmetic)
    return max(assert_within_budget(name, x, truth[name], budget[name]) for name, x in got.items())


def assert_within_budget(name: str, got: Tensor, truth: Tensor, budget: Tensor) -> float:
    """Every element's error must be at most its budget; returns the largest error in budgets. NaN is over any budget.

    Raises:
        AssertionError: an error is larger, or the shapes differ.
    """
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    if truth.numel() == 0:
        return 0.0
    error = (got.double() - truth).abs()
    worst = torch.where(error == 0, 0.0, error / budget).nan_to_num(nan=math.inf).flatten()
    i = int(worst.argmax())
    assert worst[i] <= 1, (
        f"{name}: error {error.flatten()[i]:.3g} over its budget {budget.flatten()[i]:.3g}, {worst[i]:.3g} of it, "
        f"at element {i} of shape {tuple(truth.shape)}"
    )
    return float(worst[i])


def check_same_rows(got: Tensor, expected: Tensor, other: Tensor) -> None:
    """Assert that bfloat16 outputs for standard-normal values are of the same rows, whose sums may be cut differently:
    weights of 8 bits leave outputs 2^-8 of the mean |v| apart, below 1, and outputs of 8 bits are rounded once more.

    Args:
        other: outputs of rows that are others; they must not pass for ``expected``.
    """
    tolerance = {"rtol": 2.0**-7, "atol": 2.0**-8}
    torch.testing.assert_close(got, expected, **tolerance)
    assert not torch.allclose(other, expected, **tolerance)


def budgets(case: Case, arithmetic: Arithmetic) -> dict[str, Tensor]:
    """The budget of every result of `run`, in float64."""
    q, k, v = (case.inputs[name] for name in "qkv")
    tiv_rows = len(case.inputs.get("k_tiv", ()))
    if case.scope == "broadcast":
        k, v = (torch.cat([case.inputs[f"{name}_tiv"], x]) for name, x in (("k", k), ("v", v)))
    visible = case.layout.visibility(case.scope)
    found = error_budgets.budgets(arithmetic, visible, (q, k, v), case.dout, case.dlse, case.the_scale)
    if case.scope == "broadcast":
        found |= {f"{name}_tiv": found[name][:tiv_rows] for name in ("dk", "dv")}
        found |= {name: found[name][tiv_rows:] for name in ("dk", "dv")}
    return found
