"""Token files of any length, written as the tokens come."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tivtok.files import replacing
from tivtok.tokens.format import TokensError, metadata_from, to_stored
from tivtok.tokens.tokens import check_fields

HEADER_BYTES = 1024  # a header takes about half of it; a preset may have a long name


class TokenWriter:
    """A token file of one video that grows as its chunks are encoded, in constant memory.

    safetensors files cannot be appended to: their header states every size and comes first. So room for the header is
    left at the start (the format allows it to be padded), TV tokens are appended behind it as they come, and TIV sets
    go to an unnamed file beside it, since fixed numbers of sets can only be merged at the end. Closing appends TIV
    sets and index, fills in the header and renames. An interrupted encode leaves nothing: the file under its final
    name is either the old one or complete.

    Made by `create`.
    """

    def __init__(self, file: IO[bytes], shelf: IO[bytes], dtype: str) -> None:
        self._file = file
        self._shelf = shelf
        self._dtype = dtype
        self._tv_shape: tuple[int, ...] = ()  # (N_TV, D)
        self._tiv_shape: tuple[int, ...] = ()  # (N_TIV, D)
        self._groups_of_tiv: list[int] = []
        self.groups = 0
        file.write(bytes(HEADER_BYTES))

    @classmethod
    @contextmanager
    def create(
        cls, path: str | os.PathLike[str], dtype: Literal["float32", "float16"] = "float32"
    ) -> Iterator[TokenWriter]:
        """``with TokenWriter.create("a.tivtok") as out``: the file appears when the block ends after `close`.

        Raises:
            OSError: the file cannot be written.
        """
        with (
            replacing(path) as temporary,
            open(temporary, "wb") as file,
            tempfile.TemporaryFile(dir=temporary.parent) as shelf,
        ):
            yield cls(file, shelf, dtype)

    def add_tv(self, tv: Tensor) -> None:
        """Append the TV tokens (T, N_TV, D) of the next T frame groups."""
        self._tv_shape = tuple(tv.shape[1:])
        self.groups += tv.shape[0]
        self._file.write(_bytes(to_stored("tv", tv, self._dtype)))

    def add_tiv(self, tiv: Tensor, groups: int) -> None:
        """The TIV tokens (N_TIV, D) of the next ``groups`` frame groups."""
        self._tiv_shape = tuple(tiv.shape)
        self._groups_of_tiv.append(groups)
        self._shelf.write(_bytes(to_stored("tiv", tiv, "float32")))

    def close(self, set_of_tiv: Tensor, fields: dict[str, Any]) -> None:
        """Complete the file.

        Args:
            set_of_tiv: int64, ascending from 0: which set each call of `add_tiv` goes into; a set is their mean.
            fields: the scalar fields of `Tokens`.

        Raises:
            TokensError: fields or values cannot be stored.
        """
        check_fields(self.groups, **fields)
        groups = torch.tensor(self._groups_of_tiv)
        tiv_index = set_of_tiv.repeat_interleave(groups)
        counts = set_of_tiv.bincount().tolist()
        self._shelf.seek(0)
        for count in counts:
            self._file.write(_bytes(to_stored("tiv", self._mean_of_next(count), self._dtype)))
        self._file.write(_bytes(tiv_index))
        self._file.seek(0)
        self._file.write(
            _header(
                metadata_from(fields),
                {
                    "tv": (self._dtype, (1, self.groups, *self._tv_shape)),
                    "tiv": (self._dtype, (1, len(counts), *self._tiv_shape)),
                    "tiv_index": ("int64", (self.groups,)),
                },
            )
        )

    def _mean_of_next(self, count: int) -> Tensor:
        """Eq. 6 over the next ``count`` TIV tokens of the shelf, one of them in memory at a time."""
        mean = torch.zeros(self._tiv_shape)
        for i in range(count):
            row = np.frombuffer(self._shelf.read(mean.nbytes), dtype=np.float32)
            mean += (torch.from_numpy(row.copy()).view(self._tiv_shape) - mean) / (i + 1)
        return mean


_CODES = {"float32": ("F32", 4), "float16": ("F16", 2), "int64": ("I64", 8)}


def _header(metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """safetensors: 8 bytes of length, then JSON, padded with spaces; offsets count from the end of the header."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        code, size = _CODES[dtype]
        start, end = end, end + size * math.prod(shape)
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False).encode().ljust(HEADER_BYTES - 8)
    if len(text) > HEADER_BYTES - 8:
        raise TokensError(f"preset and model_id must be shorter, got {metadata['preset']!r}, {metadata['model_id']!r}")
    return len(text).to_bytes(8, "little") + text


def _bytes(x: Tensor) -> memoryview:
    return x.contiguous().numpy().data
