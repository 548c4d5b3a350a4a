"""Mean and standard deviation of a model's tokens: what a generator needs to work on values around 0 and 1."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tivtok.checkpoints import CheckpointError, find_checkpoint, write_tensors
from tivtok.files import utf8_path

STATS_FILE = "latents.safetensors"
_NAMES = ("tiv_mean", "tiv_std", "tv_mean", "tv_std")


@dataclass(frozen=True)
class LatentStats:
    """Mean and standard deviation per token and channel: each token of a set has its own role.

    Attributes:
        tiv_mean, tiv_std: float32 (N_TIV, D).
        tv_mean, tv_std: float32 (N_TV, D).
        model_id: the model whose tokens these describe.
    """

    tiv_mean: Tensor
    tiv_std: Tensor
    tv_mean: Tensor
    tv_std: Tensor
    model_id: str

    @classmethod
    def of(cls, many: Iterable[tuple[Tensor, Tensor]], model_id: str) -> LatentStats:
        """Measure TIV sets (B, S, N_TIV, D) and frame groups (B, T, N_TV, D) of videos, one pair in memory at a time.

        Raises:
            ValueError: there are none.
        """
        sums: dict[str, list[Tensor]] = {}
        for pair in many:
            for name, tokens in zip(("tiv", "tv"), pair, strict=True):
                x = tokens.detach().cpu().double().flatten(0, 1)
                new = [torch.tensor(float(len(x))), x.sum(0), x.square().sum(0)]
                sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new
        if not sums:
            raise ValueError("statistics need the tokens of one video at least, got none")
        stats = {}
        for name, (count, total, squares) in sums.items():
            mean = total / count
            stats[f"{name}_mean"] = mean.float()
            stats[f"{name}_std"] = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6).float()
        return cls(**stats, model_id=model_id)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path) -> LatentStats:
        """Load the statistics that lie beside a checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, or none are beside it, or they are damaged.
        """
        path = find_checkpoint(path_or_name) / STATS_FILE
        if not path.is_file():
            raise CheckpointError(f"the checkpoint has no {STATS_FILE}: `tivtok stats` writes it")
        try:
            with utf8_path(path) as opened, safetensors.safe_open(opened, framework="pt") as file:
                return cls(**{name: file.get_tensor(name) for name in _NAMES}, model_id=file.metadata()["model_id"])
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write them into a checkpoint's folder."""
        tensors = {name: getattr(self, name) for name in _NAMES}
        write_tensors(Path(folder) / STATS_FILE, tensors, {"model_id": self.model_id})
