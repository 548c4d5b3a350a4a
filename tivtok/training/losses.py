"""The terms of the loss and their balance. Gradients are taken at the reconstruction, before the model's own backward.

So each term's networks are walked backward once, the balance at the last layer costs one matrix product, and the model
sees a single backward pass whatever wraps it (DDP, FSDP, torch.compile).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tivtok.metrics.lpips import LPIPS
from tivtok.metrics.weights import find_weights
from tivtok.model.patchify import patchify
from tivtok.model.quantizer import SoftVQ
from tivtok.tokenizer import TivTok
from tivtok.training.config import TrainConfig

# Distance of images: a, b (N, 3, H, W) in [-1, 1] -> (N,).
Perceptual = Callable[[Tensor, Tensor], Tensor]

MAX_ADAPTIVE_WEIGHT = 1e4


def load_perceptual(config: TrainConfig) -> nn.Module | None:
    """LPIPS as the run wants it.

    Raises:
        WeightsError: its weights are not there, or not LPIPS weights.
    """
    if config.perceptual is None:
        return None
    net = config.perceptual.net
    return LPIPS(net, weights=config.perceptual.weights or find_weights(f"lpips-{net}"))


def reconstruction_terms(
    reconstruction: Tensor,
    video: Tensor,
    frames: Tensor,
    perceptual: Perceptual | None,
    config: TrainConfig,
    step: int,
) -> dict[str, Tensor]:
    """The terms that compare with the original, by name, weighted.

    Args:
        reconstruction, video: (B, 3, F, H, W) in [-1, 1].
        frames: int64, the ones that ``perceptual`` sees.
        step: of the run.
    """
    distance = F.l1_loss if config.reconstruction == "l1" else F.mse_loss
    terms = {"reconstruction": distance(reconstruction, video)}
    if perceptual is not None and config.perceptual is not None:
        images = (x[:, :, frames].transpose(1, 2).flatten(0, 1) for x in (reconstruction, video))
        terms["perceptual"] = config.perceptual.weight_at(step) * perceptual(*images).mean()
    return terms


class EntropyPenalty:
    """SoftVQ's penalty on the tokens of the model's last forward pass in training, TIV and TV together."""

    def __init__(self, quantizer: SoftVQ) -> None:
        self.quantizer = quantizer
        self._tokens: list[Tensor] = []
        quantizer.register_forward_hook(self._keep_input)

    def take(self) -> Tensor:
        """The penalty, differentiable with respect to encoder and codebook; forgets the tokens."""
        tokens = torch.cat([x.flatten(0, -2) for x in self._tokens]).float()
        self._tokens.clear()
        return self.quantizer.entropy_penalty(tokens)

    def _keep_input(self, quantizer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if quantizer.training:
            self._tokens.append(inputs[0])


class LastLayer:
    """Gradients of a loss with respect to the weights of the model's last layer, from its gradient at the output."""

    def __init__(self, model: TivTok) -> None:
        self.patch = model.config.patch
        model.decoder.to_pixels.register_forward_hook(self._keep_input)

    def gradient(self, output_gradient: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (values per patch, width), for the model's last forward pass."""
        at_patches = patchify(output_gradient, self.patch).flatten(0, -2).float()
        return at_patches.T @ self._input.flatten(0, -2).float()

    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._input = inputs[0].detach()


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """|gradient of the other terms| / |adversarial gradient|, at the last layer (VQGAN, arXiv 2012.09841)."""
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-6)
    return ratio.clamp(max=MAX_ADAPTIVE_WEIGHT)
