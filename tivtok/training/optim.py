"""Optimizers and their schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tivtok.training.config import TrainConfig

# Quintic Newton-Schulz coefficients of Muon (Jordan et al. 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations, for weight matrices.

    torch.optim.Muon takes one matrix at a time; here matrices of one shape go through together, and the stacked q, k
    and v projections count as three.

    Args:
        dtype: what the iterations are computed in. torch.optim.Muon's bfloat16 is emulated by CPUs without bfloat16
            units, where float32 is 3 times as fast.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are for line searches
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._step_stack(params, group["lr"], group["weight_decay"], group["momentum"])

    def _step_stack(self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        updates = []
        for p in params:
            assert p.grad is not None
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - momentum)
            updates.append(p.grad.lerp(buffer, momentum))  # Nesterov
        rows, columns = params[0].shape
        stack = torch.stack(updates).view(-1, columns if rows % columns == 0 and rows == 3 * columns else rows, columns)
        size = math.sqrt(max(1, stack.shape[1] / stack.shape[2]))  # spectral norm of the update, in units of lr
        stack = orthogonalize(stack.to(self.dtype)).view(len(params), rows, columns) * size
        for p, update in zip(params, stack, strict=True):
            p.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """(B, M, N) -> the nearest semi-orthogonal matrices, roughly: all singular values between about 0.7 and 1.2."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x if wide else x.mT


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    use_muon = config.optimizer == "muon"
    hidden = [p for name, p in named if use_muon and ".blocks." in name and p.ndim == 2]
    chosen = set(hidden)
    decayed = [p for _, p in named if p not in chosen and p.ndim == 2]
    plain = [p for _, p in named if p not in chosen and p.ndim != 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    adamw = AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    if not hidden:
        return [adamw]
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    return [Muon(hidden, config.muon_learning_rate, config.weight_decay, dtype=dtype), adamw]


def schedule(step: int, config: TrainConfig) -> float:
    """Fraction of the peak learning rate at ``step``: linear warm-up, cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
