"""Tokens of many videos: shards and an index, written by ``tivtok encode-dir`` and read as a Dataset.

A folder holds ``shard-00000.safetensors``, ``shard-00001.safetensors``, ... or the same as ``.parquet``, and
``index.json`` (and ``plan.json``, which is for ``encode-dir`` alone).

- A safetensors shard holds for its i-th video the tensors ``i.tiv`` (1, S, N_TIV, D) and ``i.tv`` (1, T, N_TV, D),
  float16 or float32, ``i.tiv_index`` (T,) int64 and, where cuts have ended chunks, ``i.chunk_frames`` (K,) int64; in
  version 3 ``i.packed`` uint8 instead, values as 8-bit integers or coded (`tivtok.tokens.packed`), in version 4 perhaps
  ``i.ragged``, where numbers of tokens differ. Its string metadata: format, version, and as JSON lists ``records`` and
  ``failed``, what the index says about its videos, so that the index can be made again from the shards.
- A Parquet shard: `tivtok.tokens.parquet`.
- The index, version 1: ``{"format", "version", "shards", "videos": [...], "failed": [...], "left_out": [...]}``. A
  video is ``{"path", "shard", "key"}``, what a list says of it, and the scalar fields of `Tokens`; a failed one is
  ``{"path", "error"}``; what was never tried is ``{"path", "reason"}``. Paths are relative to the folder that was
  encoded; bytes in them that are not UTF-8 are written as Python's "surrogateescape" does it.
- Version 2, of Parquet shards: in place of "videos" it has "rows", how many each shard has; the shards say the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor
from torch.utils.data import Dataset

from tivtok.checkpoints import write_tensors
from tivtok.files import open_in, replacing_in, utf8_path
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.format import FIELDS, PACKED, RAGGED, StoredDtype
from tivtok.tokens.rows import COLUMNS, from_row, to_row
from tivtok.tokens.tokens import Tokens, TokensError

FORMAT = "tivtok.dataset"
SAFETENSORS, PARQUET = "safetensors", "parquet"
VERSIONS = {SAFETENSORS: 1, PARQUET: 2}  # of index and shards
PACKED_VERSION, RAGGED_VERSION = 3, 4  # of safetensors shards with such values
INDEX_FILE = "index.json"

_PARTS = ("tiv", "tv", "tiv_index")


class TokenDataset(Dataset[Tokens]):
    """The videos of a folder written by ``tivtok encode-dir``, as `Tokens` mapped from its shards.

    Only the tokens asked for are read, by each worker of a DataLoader for itself. Videos differ in length: give the
    DataLoader `tivtok.tokens.batches.collate` as its ``collate_fn``, or ``batch_size=None``.

    Args:
        folder: the folder, or where the shards are Parquet its address as fsspec takes it ("s3://bucket/tokens").

    Attributes:
        videos: the records of the index, in its order; of Parquet the rows, each read when it is asked for.

    Raises:
        OSError: there is no index, or it cannot be read.
        TokensError: it is none, or of another version.
        ModuleNotFoundError: the shards are Parquet, and pyarrow is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder).removeprefix("file://")
        try:
            with open_in(self.folder, INDEX_FILE) as file:
                index = json.loads(file.read())
            storage = _check_format(index)
            self.videos: Sequence[dict[str, Any]] = (
                index["videos"] if storage == SAFETENSORS else _rows(self.folder, index["rows"])
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokensError(f"{self.folder}/{INDEX_FILE} is not an index of token shards: {error}") from None

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Tokens:
        """
        Raises:
            IndexError: there are fewer videos.
            TokensError: the shard or its record is damaged.
        """
        record = self.videos[index]
        if isinstance(self.videos, list):
            return _stored_tokens(Path(self.folder) / Path(record["shard"]).name, record)
        return from_row(record)


def shard_name(number: int, storage: str = SAFETENSORS) -> str:
    return f"shard-{number:05}.{storage}"


def write_shard(
    path: str | os.PathLike[str],
    videos: Sequence[tuple[Mapping[str, Any], Tokens]],
    failed: Sequence[Mapping[str, Any]],
    dtype: StoredDtype,
    calibration: Calibration | None = None,
) -> None:
    """Write the shard ``path``, of what its suffix says.

    Args:
        path: of the file; of a Parquet shard also its address as fsspec takes it.
        videos: what is known of each ("path" and more), and its tokens.
        failed: what is known of those that could not be encoded, with "error".
        dtype, calibration: as in ``Tokens.save``; a Parquet shard takes float16 and float32.
    """
    path = os.fspath(path)
    if _is_parquet(path):
        from tivtok.tokens import parquet

        metadata = {"format": FORMAT, "version": str(VERSIONS[PARQUET]), "failed": json.dumps(failed)}
        parquet.write_rows(path, [{**about, **to_row(tokens, dtype)} for about, tokens in videos], metadata)
        return
    tensors: dict[str, Tensor] = {}
    kinds: set[str] = set()
    records: list[dict[str, Any]] = []
    for key, (about, tokens) in enumerate(videos):
        stored, _ = tokens.stored(dtype, calibration)
        tensors |= {f"{key}.{part}": x for part, x in stored.items()}
        kinds |= stored.keys()
        fields = {field: getattr(tokens, field) for field in FIELDS}
        records.append({**about, "shard": os.path.basename(path), "key": str(key)} | fields)
    packed = PACKED_VERSION if PACKED in kinds else VERSIONS[SAFETENSORS]
    version = RAGGED_VERSION if RAGGED in kinds else packed
    metadata = {"format": FORMAT, "version": str(version), "records": json.dumps(records)}
    write_tensors(Path(path), tensors, metadata | {"failed": json.dumps(failed)})


def read_shard(path: str) -> list[tuple[dict[str, Any], Tokens]]:
    """Read what `write_shard` has written: what is known of each video, and its tokens.

    Raises:
        OSError: there is none, or it cannot be read.
        TokensError: it is no shard, or damaged.
    """
    if _is_parquet(path):
        from tivtok.tokens import parquet

        return [(_without(row, COLUMNS), from_row(row)) for row in parquet.read_rows(path)]
    records, _ = read_records(path)
    return [(_without(record, ("shard", "key", *FIELDS)), _stored_tokens(path, record)) for record in records]


def read_failed(path: str) -> list[dict[str, Any]]:
    """A shard's entries for the videos that could not be encoded.

    Raises:
        TokensError: it is no shard, or damaged.
    """
    return (_rows_and_failed(path) if _is_parquet(path) else read_records(path))[1]


def _rows_and_failed(path: str) -> tuple[int, list[dict[str, Any]]]:
    from tivtok.tokens import parquet

    count, metadata = parquet.read_metadata(path)
    try:
        _check_format(metadata)
        return count, json.loads(metadata["failed"])
    except (ValueError, KeyError) as error:
        raise TokensError(f"{path} is not a shard of tokens: {error}") from None


def read_records(path: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read a safetensors shard's entries for its videos and for those that failed.

    Raises:
        TokensError: it is no shard, or damaged.
    """
    try:
        with utf8_path(path) as name, safetensors.safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
        _check_format(metadata, shard=True)
        return json.loads(metadata["records"]), json.loads(metadata["failed"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise TokensError(f"{path} is not a shard of tokens: {error}") from None


def write_index(
    folder: str | os.PathLike[str], shards: int, left_out: Sequence[dict[str, str]] = (), storage: str = SAFETENSORS
) -> tuple[int, list[dict[str, Any]]]:
    """Write ``index.json`` from the first ``shards`` shards of a folder.

    Args:
        folder: with Parquet shards also its address as fsspec takes it.
        left_out: ``{"path", "reason"}`` of what was not taken for a video.

    Returns:
        How many videos there are, and the entries of those that failed.
    """
    folder = os.fspath(folder)
    paths = [os.path.join(folder, shard_name(number, storage)) for number in range(shards)]
    videos: dict[str, Any]
    if storage == PARQUET:
        rows = [_rows_and_failed(path) for path in paths]
        videos, count = {"rows": [n for n, _ in rows]}, sum(n for n, _ in rows)
        failed = [record for _, lost in rows for record in lost]
    else:
        both = [read_records(path) for path in paths]
        videos = {"videos": [record for records, _ in both for record in records]}
        count, failed = len(videos["videos"]), [record for _, lost in both for record in lost]
    index = {"format": FORMAT, "version": VERSIONS[storage], "shards": shards}
    index |= videos | {"failed": failed, "left_out": list(left_out)}
    with replacing_in(folder, INDEX_FILE) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return count, failed


def _stored_tokens(path: str | Path, record: dict[str, Any]) -> Tokens:
    """The tokens of a video in a safetensors shard, mapped."""
    try:
        with utf8_path(path) as opened, safetensors.safe_open(opened, framework="pt") as file:
            return _tokens_of(file, record)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise TokensError(f"{record.get('path')} in {path} cannot be read: {error}") from None


def _tokens_of(file: safetensors.safe_open, record: dict[str, Any]) -> Tokens:
    """The tokens of a shard's video."""
    key = record["key"]
    names = [name for name in (*_PARTS, "chunk_frames", PACKED, RAGGED) if f"{key}.{name}" in file.keys()]  # noqa: SIM118
    tensors = {name: file.get_tensor(f"{key}.{name}") for name in names}
    return Tokens.from_stored(tensors, {name: record[name] for name in FIELDS})


def _is_parquet(path: str) -> bool:
    return path.endswith(f".{PARQUET}")


def _rows(folder: str, counts: list[int]) -> Sequence[dict[str, Any]]:
    from tivtok.tokens import parquet

    return parquet.Rows(folder, [shard_name(number, PARQUET) for number in range(len(counts))], counts)


def _without(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def _check_format(stated: dict[str, Any], *, shard: bool = False) -> str:
    """The storage that the version is of."""
    if stated.get("format") != FORMAT:
        raise TokensError(f'it must say format "{FORMAT}"')
    storages = {str(version): storage for storage, version in VERSIONS.items()}
    if shard:
        storages |= {str(version): SAFETENSORS for version in (PACKED_VERSION, RAGGED_VERSION)}
    if (storage := storages.get(str(stated.get("version")))) is not None:
        return storage
    known = " and ".join(storages)
    raise TokensError(f"version {stated.get('version')!r} of the format, this program reads {known}")
