"""Checkpoints on disk: ``config.json`` + ``model.safetensors``, the file format of ``PyTorchModelHubMixin``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from tivtok.files import replacing, utf8_path
from tivtok.model.config import TivTokConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# Keys in the weights file's metadata: the id, and the config that it is for.
_MODEL_ID, _CONFIG = "tivtok_model_id", "tivtok_config"

_BUNDLED = Path(__file__).parent / "assets" / "checkpoints"


class CheckpointError(ValueError):
    """A checkpoint that cannot be found or used; the message says what came and what was expected."""


def bundled_checkpoints() -> list[str]:
    """Names that ``TivTok.from_pretrained`` finds inside the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CONFIG_FILE}"))


def find_checkpoint(path_or_name: str | Path, revision: str | None = None) -> Path:
    """Find a checkpoint's folder: given a folder, a file in one, a bundled name, or a repository ("owner/name").

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path_or_name)
    if path.is_file():
        path = path.parent
    elif str(path_or_name) in bundled_checkpoints():
        path = _BUNDLED / str(path_or_name)
    elif not path.exists() and str(path_or_name).count("/") == 1:
        path = _download(str(path_or_name), revision)
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"no checkpoint at {path_or_name}: expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, "
            f"or one of the bundled {bundled_checkpoints()}"
        )
    return path


class Checkpoint(NamedTuple):
    """Contents of a checkpoint folder.

    ``model_id`` is None where none was stored (as before November 2026), or the config was edited since.
    """

    config: TivTokConfig
    weights: dict[str, Tensor]
    model_id: str | None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: a file is damaged, or the config is not that of a TivTok model.
    """
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config = TivTokConfig.from_dict(values)
        with utf8_path(folder / WEIGHTS_FILE) as path, safetensors.safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
        edited = TivTokConfig.from_dict(values | json.loads(metadata.get(_CONFIG, "{}"))) != config
        return Checkpoint(config, weights, None if edited else metadata.get(_MODEL_ID))
    except (ValueError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {error}") from None


def save_checkpoint(folder: str | Path, config: TivTokConfig, weights: dict[str, Tensor], model_id: str) -> None:
    """Write both files, each under a temporary name first. Creates the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    metadata = {"format": "pt", _MODEL_ID: model_id, _CONFIG: json.dumps(config.to_dict())}
    write_tensors(folder / WEIGHTS_FILE, weights, metadata)


def push_checkpoint(folder: str | Path, repository: str) -> str:
    """Upload a checkpoint to Hugging Face, from where ``TivTok.from_pretrained`` takes it by the same name.

    Args:
        repository: "owner/name", made as a private one where it does not exist.

    Returns:
        the address of the commit.

    Raises:
        CheckpointError: there is no checkpoint in ``folder``, or it cannot be uploaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = find_checkpoint(Path(folder))
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the checkpoint {folder} could not be uploaded to {repository}: {reason}") from None
    return commit.commit_url


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with the permissions of any new file (``save_file`` lets only the
    owner read it)."""
    data = safetensors.torch.save({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"no checkpoint at {repository}: no such folder, and it could not be fetched from Hugging Face ({reason})"
        ) from None
