"""LPIPS: published values with the real weights; with random ones, a plain statement of the definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tivtok.metrics.lpips import LPIPS, Net
from tivtok.metrics.weights import WeightsError


def plain(net: str, tensors: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The definition, layer by layer as the architectures are drawn."""
    mean = torch.tensor([-0.030, -0.088, -0.188], dtype=a.dtype)[:, None, None]
    std = torch.tensor([0.458, 0.448, 0.450], dtype=a.dtype)[:, None, None]
    stages = {
        "alex": [[(0, 4, 2)], [(3, 1, 2)], [(6, 1, 1)], [(8, 1, 1)], [(10, 1, 1)]],
        "vgg": [[(i, 1, 1) for i in s] for s in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))],
    }[net]

    def activations(x: torch.Tensor) -> list[torch.Tensor]:
        x, found = (x - mean) / std, []
        for number, stage in enumerate(stages):
            if number and (net == "vgg" or number < 3):
                x = F.max_pool2d(x, 2 if net == "vgg" else 3, 2)
            for index, stride, padding in stage:
                weight, bias = (tensors[f"features.{index}.{n}"].to(x.dtype) for n in ("weight", "bias"))
                x = F.conv2d(x, weight, bias, stride, padding).relu()
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    total = torch.zeros(len(a), dtype=a.dtype)
    for k, (x, y) in enumerate(zip(activations(a), activations(b), strict=True)):
        total += F.conv2d((x - y) ** 2, tensors[f"lin{k}.model.1.weight"].to(x.dtype)).mean((1, 2, 3))
    return total


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures in [-1, 1]: sums of a few waves. Written out, since random generators may change."""
    n, _, height, width = shape
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    waves = [
        torch.sin(6.283 * ((1 + k + c) * x + (2 * k - c + seed) * y + 0.37 * k * c)) for k in range(n) for c in range(3)
    ]
    return torch.stack(waves).view(shape) * 0.9


@pytest.mark.parametrize(("net", "size"), [("vgg", (18, 16)), ("alex", (40, 33))])
def test_equals_the_definition(net: Net, size: tuple[int, int], random_weights: Path) -> None:
    path = random_weights / f"lpips-{net}.safetensors"
    a, b = images(2, 3, *size), images(2, 3, *size, seed=1)
    network = LPIPS(net, weights=path)
    expected = plain(net, load_file(path), a.double(), b.double())
    assert network(a, b).shape == (2,) and expected.min() > 1e-3
    torch.testing.assert_close(network(a, b), expected.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network(b, a), network(a, b))
    assert torch.equal(network(a, a), torch.zeros(2))


def test_gradients_reach_the_images_and_not_the_network(random_weights: Path) -> None:
    network = LPIPS("alex", weights=random_weights / "lpips-alex.safetensors")
    a = images(1, 3, 32, 32).requires_grad_()
    distance = network(a, images(1, 3, 32, 32, seed=1)).sum()
    distance.backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    with torch.no_grad():
        closer = network(a - 0.01 * a.grad / a.grad.norm(), images(1, 3, 32, 32, seed=1)).sum()
    assert closer < distance


def test_dead_activations_have_no_gradient_of_nan(random_weights: Path, tmp_path: Path) -> None:
    """All channels zero at a place: the length that is divided by is zero, and so is its gradient."""
    tensors = {name: 0 * x for name, x in load_file(random_weights / "lpips-alex.safetensors").items()}
    save_file(tensors, tmp_path / "dead.safetensors")
    a = images(1, 3, 32, 32).requires_grad_()
    LPIPS("alex", weights=tmp_path / "dead.safetensors")(a, -a.detach()).sum().backward()
    assert a.grad is not None and torch.equal(a.grad, torch.zeros_like(a))


def test_a_trunk_alone_gets_the_published_heads(random_weights: Path, tmp_path: Path) -> None:
    """As torchvision's files are: no heads, and a classifier behind."""
    tensors = load_file(random_weights / "lpips-alex.safetensors")
    trunk = {name: x for name, x in tensors.items() if name.startswith("features.")}
    torch.save(trunk | {"classifier.1.weight": torch.ones(2)}, tmp_path / "trunk.pth")
    network = LPIPS("alex", weights=tmp_path / "trunk.pth")
    assert torch.equal(network.features[0].weight, trunk["features.0.weight"])
    assert all((head >= 0).all() and head.max() > 0 for head in network.heads)


def test_wrong_input_is_named(random_weights: Path, tmp_path: Path) -> None:
    path = random_weights / "lpips-alex.safetensors"
    network = LPIPS("alex", weights=path)
    with pytest.raises(ValueError, match=r"a must be \(N, 3, H, W\) with H and W of at least 31, got \(1, 3, 30, 64\)"):
        network(torch.zeros(1, 3, 30, 64), torch.zeros(1, 3, 30, 64))
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(1, 3, 32, 32\), got \(2, 3, 32, 32\)"):
        network(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match='net must be "vgg" or "alex"'):
        LPIPS("squeeze", weights=path)
    with pytest.raises(WeightsError, match="does not hold LPIPS weights for net='vgg'"):
        LPIPS("vgg", weights=path)
    with pytest.raises(WeightsError, match="there is no such file"):
        LPIPS("vgg", weights=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        LPIPS("vgg", weights=tmp_path / "text.pth")


@pytest.mark.parametrize(("net", "values"), [("vgg", (0.64031, 0.16731)), ("alex", (0.33551, 0.02649))])
def test_golden_values(net: Net, values: tuple[float, float], real_weights: Callable[[str], Path]) -> None:
    """Computed by `plain` in float64 with the real weights, whose heads are those of the package lpips 0.1.4."""
    a = images(2, 3, 64, 64)
    b = torch.stack([a[0].flip(-1), (a[1] + 0.3 * images(1, 3, 64, 64, seed=5)[0]).clamp(-1, 1)])
    distances = LPIPS(net, weights=real_weights(f"lpips-{net}"))(a, b)
    torch.testing.assert_close(distances, torch.tensor(values), rtol=1e-3, atol=1e-4)
