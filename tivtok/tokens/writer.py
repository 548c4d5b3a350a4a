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

from tivtok.chunks.sharing import mean_tiv
from tivtok.files import replacing
from tivtok.tokens.format import TokensError, metadata_from, to_stored
from tivtok.tokens.tokens import check_fields

HEADER_BYTES = 1024  # a header takes about half of it; a preset may have a long name


class TokenWriter:
    """A token file of one video that grows as its chunks are encoded, in constant memory.

    safetensors files cannot be appended to: their header states every size and comes first. So room for the header is
    left at the start (the format allows it to be padded), TV tokens are appended behind it as they come, and the TIV
    tokens of chunks go to an unnamed file beside it, since which chunks share a set may be known only at the end.
    Closing appends TIV sets and index, fills in the header and renames. An interrupted encode leaves nothing: the file
    under its final name is either the old one or complete.

    Made by `create`.
    """

    def __init__(self, file: IO[bytes], shelf: IO[bytes], dtype: str) -> None:
        self._file = file
        self._shelf = shelf
        self._dtype = dtype
        self._tv_shape: tuple[int, ...] = ()  # (N_TV, D)
        self._tiv_shape: tuple[int, ...] = ()  # (N_TIV, D)
        self._groups_of_chunk: list[int] = []
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

    def add(self, tiv: Tensor, tv: Tensor) -> None:
        """Take the next chunk: its TIV tokens (1, N_TIV, D) and the TV tokens (1, T, N_TV, D) of its T frame groups."""
        self._tiv_shape, self._tv_shape = tuple(tiv.shape[1:]), tuple(tv.shape[2:])
        self._groups_of_chunk.append(tv.shape[1])
        self._file.write(_bytes(to_stored("tv", tv, self._dtype)))
        self._shelf.write(_bytes(to_stored("tiv", tiv, "float32")))

    def close(self, set_of_chunk: Tensor, fields: dict[str, Any]) -> None:
        """Complete the file.

        Args:
            set_of_chunk: int64, ascending from 0: the TIV set of each chunk; a set is its chunks' mean (Eq. 6).
            fields: those of `Tokens` that are no tensors.

        Raises:
            TokensError: fields or values cannot be stored.
        """
        groups = sum(self._groups_of_chunk)
        check_fields(groups, **fields)
        counts = set_of_chunk.bincount().tolist()
        self._shelf.seek(0)
        for count in counts:
            mean = mean_tiv(self._next_tiv() for _ in range(count))
            self._file.write(_bytes(to_stored("tiv", mean, self._dtype)))
        self._file.write(_bytes(set_of_chunk.repeat_interleave(torch.tensor(self._groups_of_chunk))))
        tensors = {
            "tv": (self._dtype, (1, groups, *self._tv_shape)),
            "tiv": (self._dtype, (1, len(counts), *self._tiv_shape)),
            "tiv_index": ("int64", (groups,)),
        }
        if fields["chunk_frames"] is not None:
            self._file.write(_bytes(torch.tensor(fields["chunk_frames"])))
            tensors["chunk_frames"] = ("int64", (len(fields["chunk_frames"]),))
        self._file.seek(0)
        self._file.write(_header(metadata_from(fields), tensors))

    def _next_tiv(self) -> Tensor:
        row = np.frombuffer(self._shelf.read(4 * math.prod(self._tiv_shape)), dtype=np.float32)
        return torch.from_numpy(row.copy()).view(self._tiv_shape)


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
