"""I3D of Kinetics-400 (Carreira & Zisserman, CVPR 2017, arXiv 1705.07750), whose logits are the features of FVD.

Two kinds of file: the weights that `tivtok weights i3d` writes (DeepMind's of TF-Hub, which the original FVD and
VideoGPT's use), and i3d_torchscript.pt, StyleGAN-V's program with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tivtok.metrics.weights import WeightsError, read_tensors

Triple = tuple[int, int, int]

SIDE = 224
MIN_FRAMES = 9  # fewer leave nothing after the last pooling over 2 of ceil(F / 8)
NUM_CLASSES = 400

# Inputs and, by branch, outputs: 1x1; 1x1 then 3x3 twice; 1x1 after pooling.
_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


class I3D(nn.Module):
    """Inception-v1 inflated to 3D, RGB stream."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, (7, 7, 7), (2, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, (3, 3, 3))
        for name, (channels, widths) in _MIXED.items():
            self.add_module(name, Mixed(channels, widths))
        self.logits = Unit3D(1024, NUM_CLASSES, activation=False)

    def forward(self, video: Tensor) -> Tensor:
        """video (B, 3, F, 224, 224) in [-1, 1], F >= 9 -> logits (B, 400), means over time."""
        x = _pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "Mixed_4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean((2, 3, 4))


class Unit3D(nn.Module):
    """Convolution with TensorFlow's SAME padding; batch normalisation and ReLU, or a bias alone."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Triple = (1, 1, 1), stride: Triple = (1, 1, 1), activation: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=not activation)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3) if activation else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_pad_same(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit3D(inputs, widths[0])
        self.b1a = Unit3D(inputs, widths[1])
        self.b1b = Unit3D(widths[1], widths[2], (3, 3, 3))
        self.b2a = Unit3D(inputs, widths[3])
        self.b2b = Unit3D(widths[3], widths[4], (3, 3, 3))
        self.b3b = Unit3D(inputs, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


def load_i3d(weights: str | Path, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Load a function from video (B, 3, F, H, W) in [-1, 1] to features (B, 400): `I3D`, or i3d_torchscript.pt.

    Frames are resized to 224x224 bilinearly without antialiasing, as both of FVD's toolchains do.

    Raises:
        WeightsError: the file cannot be read, or holds something else.
    """
    path = Path(weights)
    if path.suffix == ".pt" and path.is_file():
        network = _load_torchscript(path, device)
    else:
        model = I3D()
        try:
            model.load_state_dict(read_tensors(path))
        except RuntimeError as error:
            raise WeightsError(f"{path} does not hold I3D weights: {error}") from None
        network = model.to(device).eval()

    @torch.no_grad()
    def features(video: Tensor) -> Tensor:
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < MIN_FRAMES:
            raise ValueError(f"video must be (B, 3, F, H, W) with F of at least {MIN_FRAMES}, got {tuple(video.shape)}")
        return network(resize(video.to(device)))

    return features


def resize(video: Tensor) -> Tensor:
    """(B, 3, F, H, W) to (B, 3, F, 224, 224)."""
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return frames.unflatten(0, (video.shape[0], -1)).transpose(1, 2)


def _load_torchscript(path: Path, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    try:
        program = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise WeightsError(f"{path} is not a TorchScript program: {str(error).splitlines()[0]}") from None
    return lambda video: program(video, rescale=False, resize=False, return_features=True)


def _pool(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Max pooling with SAME padding: zeros, which are never above activations after a ReLU."""
    return F.max_pool3d(_pad_same(x, kernel, stride), kernel, stride)


def _pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """TensorFlow's SAME: as many outputs as inputs / stride, rounded up; of an odd padding the smaller half first."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)
