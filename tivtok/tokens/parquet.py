"""Shards of a data set as Parquet: a row for each video, read by anything that reads Parquet.

Columns: what is known of the video (``path``, and ``start``, ``end`` and others from a list), and those of
`tivtok.tokens.rows.to_row` with ``tiv`` and ``tv`` flat and their shapes in ``tiv_shape`` (S, N_TIV, D) and
``tv_shape`` (T, N_TV, D). The file's metadata has format, version and, as a JSON list, ``failed``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tivtok.files import open_in, replacing_in
from tivtok.tokens.format import TokensError

ROWS_IN_GROUP = 16  # what is read for one video
KEPT_GROUPS = 8

_SHAPED = ("tiv", "tv")


def write_rows(address: str, rows: Sequence[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Write a file of rows that have the same columns, with ``metadata`` beside them."""
    columns: dict[str, list[Any]] = {name: [] for name in (rows[0] if rows else ())}
    for row in rows:
        for name, value in row.items():
            columns[name].append(value.reshape(-1) if isinstance(value, np.ndarray) else _clean(value))
    for name in _SHAPED if rows else ():
        columns[f"{name}_shape"] = [np.array(row[name].shape, np.int32) for row in rows]
    table = pa.table(columns).replace_schema_metadata(metadata)
    with replacing_in(*os.path.split(address)) as temporary:
        pq.write_table(table, temporary, row_group_size=ROWS_IN_GROUP)


def read_metadata(address: str) -> tuple[int, dict[str, str]]:
    """The number of rows of a file, and its metadata, without its rows.

    Raises:
        OSError: it cannot be read.
        TokensError: it is no Parquet.
    """
    try:
        with open_in(*os.path.split(address)) as file:
            stated = pq.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise TokensError(f"{address} is not Parquet: {error}") from None
    return stated.num_rows, {key.decode(): value.decode() for key, value in (stated.metadata or {}).items()}


def read_rows(address: str) -> Iterator[dict[str, Any]]:
    """All rows of a file."""
    with open_in(*os.path.split(address)) as file:
        shard = pq.ParquetFile(file)
        for group in range(shard.num_row_groups):
            table = shard.read_row_group(group)
            for number in range(len(table)):
                yield _row(table, number)


class Rows(Sequence[dict[str, Any]]):
    """The rows of many files, as `write_rows` has written them, each read when it is asked for.

    Args:
        folder: of the files, or its address as fsspec takes it ("s3://bucket/tokens").
        files: their names.
        counts: of their rows.
    """

    def __init__(self, folder: str, files: Sequence[str], counts: Sequence[int]) -> None:
        self._folder, self._files = folder, list(files)
        self._before = [0, *accumulate(counts)]

    def __len__(self) -> int:
        return self._before[-1]

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """
        Raises:
            IndexError: there are fewer rows.
            OSError, TokensError: a file cannot be read.
        """
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        file = int(np.searchsorted(self._before, number, side="right")) - 1
        number -= self._before[file]
        name = self._files[file]
        try:
            size = _group_size(self._folder, name)
            return _row(_group(self._folder, name, number // size), number % size)
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise TokensError(f"{self._folder}/{name} is not a shard of tokens, or damaged: {error}") from None


@lru_cache(maxsize=KEPT_GROUPS)
def _group(folder: str, name: str, group: int) -> pa.Table:
    with open_in(folder, name) as file:
        return pq.ParquetFile(file).read_row_group(group)


@lru_cache(maxsize=4096)
def _group_size(folder: str, name: str) -> int:
    with open_in(folder, name) as file:
        return pq.ParquetFile(file).metadata.row_group(0).num_rows


def _row(table: pa.Table, number: int) -> dict[str, Any]:
    row = {name: _value(table[name][number]) for name in table.column_names}
    for name in _SHAPED:
        row[name] = row[name].reshape(row.pop(f"{name}_shape"))
    return row


def _value(scalar: pa.Scalar) -> Any:
    if isinstance(scalar, pa.ListScalar):
        return scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


def _clean(value: Any) -> Any:
    """Texts without bytes that are not UTF-8, which Parquet's cannot have: as Python escapes."""
    return value.encode(errors="surrogateescape").decode(errors="backslashreplace") if isinstance(value, str) else value
