"""Weights for the metrics: random ones, made here; and the real ones, where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tivtok.metrics.i3d import I3D
from tivtok.metrics.weights import WeightsError, find_weights

# A folder beside the checkout, as an extra where there is one.
SHARED = Path(__file__).parents[3] / "shared" / "weights"

# By net: index, inputs, outputs and kernel of torchvision's convolutions.
CONVOLUTIONS = {
    "alex": [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)],
    "vgg": [
        *[(0, 3, 64, 3), (2, 64, 64, 3), (5, 64, 128, 3), (7, 128, 128, 3)],
        *[(10, 128, 256, 3), (12, 256, 256, 3), (14, 256, 256, 3)],
        *[(17, 256, 512, 3), (19, 512, 512, 3), (21, 512, 512, 3)],
        *[(24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3)],
    ],
}
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


@pytest.fixture
def real_weights() -> Callable[[str], Path]:
    """Find a file beside the checkout, or fetched by `tivtok weights`; skip the test without."""

    def find(name: str) -> Path:
        for folder in (SHARED, None):
            try:
                return find_weights(name, folder)
            except WeightsError:
                continue
        pytest.skip(f'needs real weights: run "tivtok weights {name}"')

    return find


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `tivtok weights` makes it, of random networks whose activations neither vanish nor explode."""
    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
        return torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5

    for net, convolutions in CONVOLUTIONS.items():
        tensors = {}
        for index, inputs, outputs, kernel in convolutions:
            tensors[f"features.{index}.weight"] = normal(outputs, inputs, kernel, kernel)
            tensors[f"features.{index}.bias"] = normal(outputs)
        tensors |= {f"lin{k}.model.1.weight": normal(1, width, 1, 1).abs() for k, width in enumerate(HEADS[net])}
        save_file(tensors, folder / f"lpips-{net}.safetensors")

    i3d = {name: x for name, x in I3D().state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, x in i3d.items():
        if not name.endswith(("running_var", "bn.weight")):  # these two are ones
            i3d[name] = normal(*x.shape)
    save_file(i3d, folder / "i3d.safetensors")
    return folder
