"""Muon, and the learning rate's schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tivtok.training.optim import Muon, orthogonalize, schedule


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 4, 12), (1, 12, 4)])
def test_orthogonalize_flattens_the_spectrum(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5 and values.max() < 1.3
    assert torch.linalg.svdvals(matrices).max() / torch.linalg.svdvals(matrices).min() > 1.5


def test_muon_treats_a_fused_qkv_projection_as_three_matrices():
    torch.manual_seed(0)
    fused = torch.nn.Parameter(torch.zeros(24, 8))
    fused.grad = torch.randn(24, 8)
    parts = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    for part, grad in zip(parts, fused.grad.chunk(3), strict=True):
        part.grad = grad.clone()
    Muon([fused], lr=0.1, weight_decay=0.0).step()
    Muon(parts, lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in parts]))


def test_schedule(config):
    config = replace(config, steps=100, warmup_steps=10)
    assert schedule(0, config) == 0.1 and schedule(9, config) == 1.0
    assert schedule(55, config) == pytest.approx(0.5)
    assert schedule(100, config) == pytest.approx(0.0)
