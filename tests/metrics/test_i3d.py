"""I3D: TensorFlow's padding, the published size and names, classes with the real weights, the TorchScript kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tivtok.metrics import i3d
from tivtok.metrics.i3d import I3D, Mixed, Unit3D, load_i3d
from tivtok.metrics.weights import WeightsError
from tivtok.video import VideoReader, fit, frames_to_video

CLIPS = Path(__file__).parents[3] / "shared" / "clips" / "free"


@pytest.mark.parametrize("size", [5, 6, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 2), (2, 2), (1, 1)])
def test_same_padding(size: int, kernel: int, stride: int) -> None:
    """Outputs o are centred on the inputs as TensorFlow documents it: window o starts at o * stride - before."""
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    signal = torch.arange(1.0, size + 1)
    windows = [range(o * stride - before, o * stride - before + kernel) for o in range(outputs)]
    expected = torch.tensor([sum(float(signal[p]) for p in window if 0 <= p < size) for window in windows])
    unit = Unit3D(1, 1, (kernel, 1, 1), (stride, 1, 1), activation=False)
    with torch.no_grad():
        unit.conv3d.weight.fill_(1.0)
        unit.conv3d.bias.zero_()
        got = unit(signal.view(1, 1, size, 1, 1)).flatten()
    assert torch.equal(got, expected)


@torch.no_grad()
def test_branches_of_a_mixed_block() -> None:
    """1x1; 1x1 and 3x3; 1x1 and 3x3; 3x3 pooling and 1x1: side by side, normalised, rectified."""
    torch.manual_seed(0)
    block = Mixed(4, (1, 2, 3, 4, 5, 6)).eval()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.bias.normal_()
    x = torch.randn(1, 4, 3, 4, 5).relu()

    def unit(u: Unit3D, x: torch.Tensor) -> torch.Tensor:
        mean, var, bias = (t.view(1, -1, 1, 1, 1) for t in (u.bn.running_mean, u.bn.running_var, u.bn.bias))
        x = F.conv3d(x, u.conv3d.weight, padding=u.conv3d.kernel_size[0] // 2)
        return ((x - mean) / (var + 1e-3).sqrt() + bias).clamp_min(0)

    pooled = F.max_pool3d(x, 3, stride=1, padding=1)
    expected = [
        unit(block.b0, x),
        unit(block.b1b, unit(block.b1a, x)),
        unit(block.b2b, unit(block.b2a, x)),
        unit(block.b3b, pooled),
    ]
    torch.testing.assert_close(block(x), torch.cat(expected, dim=1))


def test_size() -> None:
    """12.29 M parameters, as of other ports, and the classes' 1024 x 400 + 400; 287 tensors in TF-Hub's variables."""
    model = I3D()
    assert sum(p.numel() for p in model.parameters()) == 12_287_264 + 410_000
    assert len([n for n in model.state_dict() if not n.endswith("num_batches_tracked")]) == 287


def test_classes_of_real_clips(real_weights: Callable[[str], Path]) -> None:
    """Kinetics' labels in alphabetical order: 171 is juggling soccer ball."""
    clip = CLIPS / "sam2__demo_data_gallery_05_default_juggle__f0128.mp4"
    if not clip.is_file():
        pytest.skip("needs the clips beside the checkout")
    frames = fit(next(VideoReader(clip).chunks(16)), 112, 112)
    probabilities = load_i3d(real_weights("i3d"))(frames_to_video(frames)[None]).softmax(1)[0]
    assert probabilities.argmax() == 171 and probabilities.max() > 0.9


def test_loads_a_file_and_resizes(random_weights: Path, tmp_path: Path) -> None:
    features = load_i3d(random_weights / "i3d.safetensors")
    video = torch.rand(1, 3, 9, 8, 8) * 2 - 1
    got = features(video)
    assert got.shape == (1, 400) and got.isfinite().all() and got.std() > 0
    with pytest.raises(ValueError, match=r"F of at least 9, got \(1, 3, 8, 8, 8\)"):
        features(video[:, :, :8])
    incomplete = load_file(random_weights / "i3d.safetensors")
    incomplete["other"] = incomplete.pop("logits.conv3d.bias")
    save_file(incomplete, tmp_path / "i3d.safetensors")
    with pytest.raises(WeightsError, match=r'does not hold I3D weights:(.|\n)*Missing key.*"logits.conv3d.bias"'):
        load_i3d(tmp_path / "i3d.safetensors")


def test_torchscript_programs_get_what_they_expect(tmp_path: Path) -> None:
    """StyleGAN-V's signature: video at its size and range, asked for features."""

    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
            assert x.shape[3] == 224 and x.shape[4] == 224 and not rescale and not resize and return_features
            return x.mean((2, 3, 4))

    torch.jit.script(Program()).save(str(tmp_path / "i3d_torchscript.pt"))
    got = load_i3d(tmp_path / "i3d_torchscript.pt")(torch.full((2, 3, 9, 8, 8), 0.25))
    torch.testing.assert_close(got, torch.full((2, 3), 0.25))
    (tmp_path / "no.pt").write_text("hello")
    with pytest.raises(WeightsError, match="is not a TorchScript program"):
        load_i3d(tmp_path / "no.pt")


def test_resize_is_bilinear_without_antialiasing() -> None:
    video = torch.zeros(1, 3, 1, 448, 448)
    video[..., ::2, ::2] = 1
    torch.testing.assert_close(i3d.resize(video), torch.full((1, 3, 1, 224, 224), 0.25))
