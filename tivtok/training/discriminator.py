"""A discriminator on the features of a frozen DINOv2 (as in StyleGAN-T, arXiv 2301.09515): its heads are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DinoFeatures(nn.Module):
    """Patch features of the embedding and of four blocks, evenly spaced: 2, 5, 8 and 11 of DINOv2-S.

    Frozen; gradients go through to the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, image_size: int) -> None:
        """backbone: a ``transformers.Dinov2Model``.

        Raises:
            ValueError: ``image_size`` is no multiple of its patch.
        """
        super().__init__()
        config: Any = backbone.config
        if image_size % config.patch_size:
            raise ValueError(f"image_size must be a multiple of the patch of {config.patch_size}, got {image_size}")
        self.backbone = backbone.requires_grad_(False).eval()
        self.image_size = image_size
        self.patch_size: int = config.patch_size
        self.channels: int = config.hidden_size
        depth = config.num_hidden_layers
        self.layers = (0, *(depth * quarter // 4 for quarter in (1, 2, 3, 4)))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    @classmethod
    def load(cls, folder: Path, image_size: int) -> DinoFeatures:
        """
        Raises:
            ValueError: there is no Dinov2Model in ``folder``.
        """
        from transformers import Dinov2Model

        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise ValueError(
                "adversarial.dinov2 must be a folder with config.json and model.safetensors of a Dinov2Model, "
                f"got {folder}"
            )
        return cls(Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True), image_size)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> five maps (N, C, rows, columns)."""
        size = (self.image_size, self.image_size)
        images = F.interpolate((images + 1) / 2, size, mode="bilinear", antialias=True)
        hidden = self.backbone((images - self.mean) / self.std, output_hidden_states=True).hidden_states
        rows = self.image_size // self.patch_size
        return [hidden[layer][:, 1:].mT.unflatten(2, (rows, rows)) for layer in self.layers]


class Heads(nn.Module):
    """One light convolutional head with spectral norm per feature map."""

    def __init__(self, channels: int, count: int = 5) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(channels) for _ in range(count))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (N, C, rows, columns) -> logits (N, maps * rows * columns), high for what looks real."""
        return torch.cat([head(x).flatten(1) for head, x in zip(self.heads, features, strict=True)], dim=1)


class _Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = _conv_block(channels, kernel=1)
        self.look_around = _conv_block(channels, kernel=3)
        self.to_logit = spectral_norm(nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.to_logit((x + self.look_around(x)) / 2**0.5)


def _conv_block(channels: int, kernel: int) -> nn.Sequential:
    # Group norm, not batch norm: a frame's logits do not depend on what else is in the batch, nor on this process.
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    return nn.Sequential(spectral_norm(conv), nn.GroupNorm(8, channels), nn.LeakyReLU(0.2))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, from its logits."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


class Lecam:
    """LeCAM regulariser (arXiv 2104.03310): logits stay near the other side's moving average.

    Attributes:
        averages: (2,) moving averages of the mean real and fake logits.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.averages = torch.zeros(2, device=device)

    def update(self, means: Tensor) -> None:
        """means: (2,) of this step's real and fake logits, over all processes."""
        self.averages.lerp_(means, 1 - self.decay)

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        average_real, average_fake = self.averages
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()
