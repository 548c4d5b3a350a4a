"""Mean and standard deviation of a model's tokens: what a generator needs to work on values around 0 and 1."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tivtok.pretrained import CheckpointError, find_checkpoint, write_tensors
from tivtok.tokens import Tokens, TokensError

STATS_FILE = "latents.safetensors"
NORMALIZED = "/normalized"  # behind the model id: such tokens cannot be taken for ones to decode
_NAMES = ("tiv_mean", "tiv_std", "tv_mean", "tv_std")


@dataclass(frozen=True)
class LatentStats:
    """Of every token and channel by itself, since the tokens of a set have each their own role.

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
    def of(cls, many: Iterable[Tokens]) -> LatentStats:
        """Of all TIV sets and frame groups of ``many`` tokens, one of them in memory at a time.

        Raises:
            ValueError: there are none, or they come from different models.
        """
        sums: dict[str, list[Tensor]] = {}
        ids = set()
        for tokens in many:
            ids.add(tokens.model_id)
            if len(ids) > 1:
                break
            for name in ("tiv", "tv"):
                x = getattr(tokens, name).detach().cpu().double().flatten(0, 1)
                new = [torch.tensor(float(len(x))), x.sum(0), x.square().sum(0)]
                sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new
        if len(ids) != 1:
            raise ValueError(f"the tokens must come from one model, got those of {sorted(ids) or 'none'}")
        stats = {}
        for name, (count, total, squares) in sums.items():
            mean = total / count
            stats[f"{name}_mean"] = mean.float()
            stats[f"{name}_std"] = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6).float()
        return cls(**stats, model_id=ids.pop())

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path) -> LatentStats:
        """Those that lie beside a checkpoint.

        Raises:
            CheckpointError: there is no such checkpoint, or none are beside it, or they are damaged.
        """
        path = find_checkpoint(path_or_name) / STATS_FILE
        if not path.is_file():
            raise CheckpointError(
                f"the checkpoint has no {STATS_FILE}: `python -m tivtok.experiments latents` writes it"
            )
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return cls(**{name: file.get_tensor(name) for name in _NAMES}, model_id=file.metadata()["model_id"])
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write them into a checkpoint's folder."""
        tensors = {name: getattr(self, name) for name in _NAMES}
        write_tensors(Path(folder) / STATS_FILE, tensors, {"model_id": self.model_id})

    def normalize(self, tokens: Tokens) -> Tokens:
        """(tokens - mean) / std, in their dtype and on their device.

        Raises:
            TokensError: they are another model's, or normalised already.
        """
        self._check(tokens, self.model_id)
        return replace(
            tokens,
            tiv=(tokens.tiv - self.tiv_mean.to(tokens.tiv)) / self.tiv_std.to(tokens.tiv),
            tv=(tokens.tv - self.tv_mean.to(tokens.tv)) / self.tv_std.to(tokens.tv),
            model_id=self.model_id + NORMALIZED,
        )

    def denormalize(self, tokens: Tokens) -> Tokens:
        """The inverse of `normalize`: tokens that the model decodes.

        Raises:
            TokensError: they are another model's, or not normalised.
        """
        self._check(tokens, self.model_id + NORMALIZED)
        return replace(
            tokens,
            tiv=tokens.tiv * self.tiv_std.to(tokens.tiv) + self.tiv_mean.to(tokens.tiv),
            tv=tokens.tv * self.tv_std.to(tokens.tv) + self.tv_mean.to(tokens.tv),
            model_id=self.model_id,
        )

    def _check(self, tokens: Tokens, expected: str) -> None:
        if tokens.model_id != expected:
            raise TokensError(f"the tokens must be of model {expected}, got {tokens.model_id}")
