"""LPIPS v0.1: learned perceptual distance of images (Zhang et al., CVPR 2018, arXiv 1801.03924).

torchmetrics has it too, but builds its trunk through torchvision, which downloads; this one is given a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import torchmetrics.functional.image
from torch import Tensor, nn

from tivtok.metrics.weights import WeightsError, read_tensors

Net = Literal["vgg", "alex"]

# torchvision's `features`: (channels, kernel, stride, padding) of a convolution, which a ReLU follows; a kernel of max
# pooling, with stride 2.
_TRUNKS: dict[str, list[tuple[int, int, int, int] | int]] = {
    "alex": [(64, 11, 4, 2), 3, (192, 5, 1, 2), 3, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)],
    "vgg": [(c, 3, 1, 1) if c else 2 for c in (64, 64, 0, 128, 128, 0, *[256] * 3, 0, *[512] * 3, 0, *[512] * 3)],
}
# The ReLUs whose activations are compared, and their channels.
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
_WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
# Below this many pixels a side, pooling leaves nothing.
_MIN_SIDE = {"alex": 31, "vgg": 16}


class LPIPS(nn.Module):
    """Frozen, differentiable with respect to the images.

    Args:
        net: the trunk, VGG-16 or AlexNet.
        weights: of trunk and heads, as `tivtok weights` writes them; or torchvision's file of the trunk alone (such as
            vgg16-397923af.pth), with the heads that torchmetrics carries (equal to those of the package lpips 0.1.4).

    Raises:
        ValueError: no such net.
        WeightsError: the file cannot be read, or holds other weights.
    """

    def __init__(self, net: Net = "vgg", *, weights: str | Path) -> None:
        if net not in _TRUNKS:
            raise ValueError(f'net must be "vgg" or "alex", got {net!r}')
        super().__init__()
        self.net = net
        self.features = _trunk(net)
        self.heads = nn.ParameterList(torch.empty(width) for width in _WIDTHS[net])
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self._load(Path(weights))
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of images.

        Args:
            a, b: (N, 3, H, W) in [-1, 1], sides of at least 16 (vgg) or 31 (alex) pixels.

        Returns:
            (N,), 0 where the images are equal.

        Raises:
            ValueError: shapes differ, or are others.
        """
        low = _MIN_SIDE[self.net]
        if a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < low:
            raise ValueError(f"a must be (N, 3, H, W) with H and W of at least {low}, got {tuple(a.shape)}")
        if b.shape != a.shape:
            raise ValueError(f"b must have the shape of a, {tuple(a.shape)}, got {tuple(b.shape)}")
        distance = a.new_zeros(a.shape[0])
        for x, y, head in zip(self._activations(a), self._activations(b), self.heads, strict=True):
            distance = distance + torch.einsum("nchw,c->nhw", (x - y).square(), head).mean((1, 2))
        return distance

    def _activations(self, images: Tensor) -> list[Tensor]:
        """Features of the compared layers, scaled to unit length over the channels."""
        x, found = (images - self.mean) / self.std, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS[self.net]:
                found.append(F.normalize(x, dim=1, eps=1e-10))
        return found

    def _load(self, path: Path) -> None:
        tensors = read_tensors(path)
        if "lin0.model.1.weight" not in tensors:
            tensors |= read_tensors(_torchmetrics_heads(self.net))
        heads = {f"heads.{k}": tensors.get(f"lin{k}.model.1.weight", torch.empty(0)).flatten() for k in range(5)}
        trunk = {name: x for name, x in tensors.items() if name.startswith("features.")}
        try:
            self.load_state_dict(trunk | heads)
        except RuntimeError as error:
            raise WeightsError(f"{path} does not hold LPIPS weights for net={self.net!r}: {error}") from None


def _trunk(net: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for spec in _TRUNKS[net]:
        if isinstance(spec, int):
            layers.append(nn.MaxPool2d(spec, stride=2))
        else:
            layers += [nn.Conv2d(channels, *spec), nn.ReLU()]
            channels = spec[0]
    return nn.Sequential(*layers)


def _torchmetrics_heads(net: str) -> Path:
    return Path(torchmetrics.functional.image.__file__).parent / "lpips_models" / f"{net}.pth"
