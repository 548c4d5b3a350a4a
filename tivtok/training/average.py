"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class WeightAverage:
    """The average of each parameter, in the place and the shards of the parameter itself."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """model: as it is trained, wrapped for DDP or FSDP where it is to be."""
        self.model = model
        self.decay = decay
        self._live = list(model.parameters())
        self._mean = [_local(p).clone() for p in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``. The decay grows up to its value, so that the first weights fade early."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, [_local(p) for p in self._live], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again from the weights that the model has now."""
        for mean, p in zip(self._mean, self._live, strict=True):
            mean.copy_(_local(p))

    @torch.no_grad()
    def _swap(self) -> None:
        if isinstance(self.model, FSDPModule):
            self.model.reshard()  # a forward pass leaves gathered copies of the weights behind
        for mean, p in zip(self._mean, self._live, strict=True):
            weight = _local(p)
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)


def _local(parameter: nn.Parameter) -> Tensor:
    """Return this process's part of a parameter."""
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data
