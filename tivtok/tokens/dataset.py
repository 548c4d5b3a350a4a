"""Tokens of many videos: safetensors shards and an index, written by ``tivtok encode-dir`` and read as a Dataset.

A folder holds ``shard-00000.safetensors``, ``shard-00001.safetensors``, ... and ``index.json``
(and ``plan.json``, which is for ``encode-dir`` alone).

- A shard holds for its i-th video the tensors ``i.tiv`` (1, S, N_TIV, D) and ``i.tv`` (1, T, N_TV, D), float16 or
  float32, ``i.tiv_index`` (T,) int64 and, where cuts have ended chunks, ``i.chunk_frames`` (K,) int64; in version 2
  ``i.packed`` uint8 instead, with values as 8-bit integers or coded (`tivtok.tokens.packed`). Its string
  metadata: format, version, and as JSON lists ``records`` and ``failed``, what the index says about its videos, so that
  the index can be made again from the shards.
- The index: ``{"format", "version", "shards", "videos": [...], "failed": [...], "left_out": [...]}``. A video is
  ``{"path", "shard", "key"}`` and the scalar fields of `Tokens`; a failed one is ``{"path", "error"}``; what was never
  tried is ``{"path", "reason"}``. Paths are relative to the folder that was encoded; bytes in them that are not UTF-8
  are written as Python's "surrogateescape" does it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor
from torch.utils.data import Dataset

from tivtok.checkpoints import write_tensors
from tivtok.files import replacing, utf8_path
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.format import FIELDS, PACKED, STORED_DTYPES, StoredDtype
from tivtok.tokens.tokens import Tokens, TokensError

FORMAT = "tivtok.dataset"
INDEX_VERSION = 1
SHARD_VERSIONS = (1, 2)
INDEX_FILE = "index.json"

_PARTS = ("tiv", "tv", "tiv_index")


class TokenDataset(Dataset[Tokens]):
    """The videos of a folder written by ``tivtok encode-dir``, as `Tokens` mapped from its shards.

    Only the tokens asked for are read, by each worker of a DataLoader for itself. Videos differ in length: give the
    DataLoader `tivtok.tokens.batches.collate` as its ``collate_fn``, or ``batch_size=None``.

    Attributes:
        videos: the records of the index, in its order.

    Raises:
        OSError: there is no index, or it cannot be read.
        TokensError: it is none, or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX_FILE
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            _check_format(index, (INDEX_VERSION,))
            self.videos: list[dict[str, Any]] = index["videos"]
        except (ValueError, KeyError, AttributeError) as error:
            raise TokensError(f"{path} is not an index of token shards: {error}") from None

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Tokens:
        """
        Raises:
            IndexError: there are fewer videos.
            TokensError: the shard or its record is damaged.
        """
        record = self.videos[index]
        try:
            path = self.folder / Path(record["shard"]).name
            with utf8_path(path) as opened, safetensors.safe_open(opened, framework="pt") as file:
                return _tokens_of(file, record)
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise TokensError(f"video {index} of {self.folder} cannot be read: {error}") from None


def shard_name(number: int) -> str:
    return f"shard-{number:05}.safetensors"


def write_shard(
    path: Path,
    videos: Sequence[tuple[str, Tokens]],
    failed: Sequence[tuple[str, str]],
    dtype: StoredDtype,
    calibration: Calibration | None = None,
) -> None:
    """Write the shard ``path`` of (path, tokens) and, for the index, (path, error).

    Args:
        dtype, calibration: as in ``Tokens.save``.
    """
    tensors: dict[str, Tensor] = {}
    records: list[dict[str, Any]] = []
    for key, (name, tokens) in enumerate(videos):
        stored, _ = tokens.stored(dtype, calibration)
        tensors |= {f"{key}.{part}": x for part, x in stored.items()}
        fields = {field: getattr(tokens, field) for field in FIELDS}
        records.append({"path": name, "shard": path.name, "key": str(key)} | fields)
    lost = [{"path": name, "error": error} for name, error in failed]
    version = 1 if dtype in STORED_DTYPES else 2
    metadata = {"format": FORMAT, "version": str(version), "records": json.dumps(records)}
    write_tensors(path, tensors, metadata | {"failed": json.dumps(lost)})


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read a shard's entries for its videos and for those that failed.

    Raises:
        TokensError: it is no shard, or damaged.
    """
    try:
        with utf8_path(path) as name, safetensors.safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
        _check_format(metadata, SHARD_VERSIONS)
        return json.loads(metadata["records"]), json.loads(metadata["failed"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise TokensError(f"{path} is not a shard of tokens: {error}") from None


def write_index(folder: Path, shards: int, left_out: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """Write ``index.json`` from the first ``shards`` shards of a folder, and return it.

    Args:
        left_out: ``{"path", "reason"}`` of what was not taken for a video.
    """
    both = [read_records(folder / shard_name(number)) for number in range(shards)]
    index = {
        "format": FORMAT,
        "version": INDEX_VERSION,
        "shards": shards,
        "videos": [record for records, _ in both for record in records],
        "failed": [record for _, failed in both for record in failed],
        "left_out": list(left_out),
    }
    with replacing(folder / INDEX_FILE) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def _tokens_of(file: safetensors.safe_open, record: dict[str, Any]) -> Tokens:
    """The tokens of a shard's video."""
    key = record["key"]
    names = [name for name in (*_PARTS, "chunk_frames", PACKED) if f"{key}.{name}" in file.keys()]  # noqa: SIM118
    tensors = {name: file.get_tensor(f"{key}.{name}") for name in names}
    return Tokens.from_stored(tensors, {name: record[name] for name in FIELDS})


def _check_format(stated: dict[str, Any], versions: Sequence[int]) -> None:
    if stated.get("format") != FORMAT:
        raise TokensError(f'it must say format "{FORMAT}"')
    if str(stated.get("version")) not in map(str, versions):
        newest = ", ".join(map(str, versions))
        raise TokensError(f"version {stated.get('version')!r} of the format, this program reads {newest}")
