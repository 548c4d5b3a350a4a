"""Token files of any length, written as the tokens come."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from tivtok.chunks.sharing import mean_tiv
from tivtok.files import replacing
from tivtok.tokens.calibration import Calibration, codecs_for
from tivtok.tokens.codecs import Codecs
from tivtok.tokens.format import PACKED, StoredDtype, TokensError, metadata_from, to_stored
from tivtok.tokens.packed import RUN, encode_block, encode_tail
from tivtok.tokens.tokens import check_fields

# A header takes about half of it; a preset may have a long name.
HEADER_BYTES = 1024
PACKED_HEADER_BYTES = 640


class TokenWriter:
    """A token file of one video that grows as its chunks are encoded, in constant memory.

    safetensors files cannot be appended to: their header states every size and comes first. So room for the header is
    left at the start (the format allows it to be padded), TV tokens are appended behind it as they come, and the TIV
    tokens of chunks go to an unnamed file beside it, since which chunks share a set may be known only at the end.
    Closing appends TIV sets and index, fills in the header and renames. An interrupted encode leaves nothing: the file
    under its final name is either the old one or complete.

    Made by `create`.
    """

    def __init__(self, file: IO[bytes], shelf: IO[bytes], body: _Plain | _Packed) -> None:
        self._file = file
        self._shelf = shelf
        self._body = body
        self._tv_shape: tuple[int, ...] = ()  # (N_TV, D)
        self._tiv_shape: tuple[int, ...] = ()  # (N_TIV, D)
        self._groups_of_chunk: list[int] = []
        file.write(bytes(body.header_bytes))

    @classmethod
    @contextmanager
    def create(
        cls,
        path: str | os.PathLike[str],
        dtype: StoredDtype = "float32",
        calibration: Calibration | None = None,
        model_id: str = "",
        levels: tuple[int, ...] | None = None,
    ) -> Iterator[TokenWriter]:
        """``with TokenWriter.create("a.tivtok") as out``: the file appears when the block ends after `close`.

        Args:
            dtype, calibration: as in ``Tokens.save``.
            model_id: of the model that makes the tokens, which the calibration must be for.
            levels: of its codes, if it makes codes.

        Raises:
            OSError: the file cannot be written.
            TokensError: the dtype and the calibration do not fit.
        """
        codecs = codecs_for(dtype, calibration, model_id, levels)
        body = _Plain(dtype) if codecs is None else _Packed(codecs)
        with (
            replacing(path) as temporary,
            open(temporary, "wb") as file,
            tempfile.TemporaryFile(dir=temporary.parent) as shelf,
        ):
            yield cls(file, shelf, body)

    def add(self, tiv: Tensor, tv: Tensor) -> None:
        """Take the next chunk: its TIV tokens (1, N_TIV, D) and the TV tokens (1, T, N_TV, D) of its T frame groups."""
        self._tiv_shape, self._tv_shape = tuple(tiv.shape[1:]), tuple(tv.shape[2:])
        self._groups_of_chunk.append(tv.shape[1])
        self._file.write(self._body.groups(tv))
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
        self._file.write(self._body.end_of_groups())
        self._shelf.seek(0)
        for count in counts:
            self._file.write(self._body.tiv_set(mean_tiv(self._next_tiv() for _ in range(count))))
        tiv_index = set_of_chunk.repeat_interleave(torch.tensor(self._groups_of_chunk))
        shapes = ((1, len(counts), *self._tiv_shape), (1, groups, *self._tv_shape))
        end, header = self._body.end(shapes, tiv_index, fields)
        self._file.write(end)
        self._file.seek(0)
        self._file.write(header)

    def _next_tiv(self) -> Tensor:
        row = np.frombuffer(self._shelf.read(4 * math.prod(self._tiv_shape)), dtype=np.float32)
        return torch.from_numpy(row.copy()).view(self._tiv_shape)


Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of tiv and tv


class _Plain:
    """Bytes of a file that holds tensors as they are."""

    header_bytes = HEADER_BYTES

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def groups(self, tv: Tensor) -> bytes:
        """Those of the next frame groups, TV tokens (1, T, N_TV, D)."""
        return _bytes(to_stored("tv", tv, self._dtype))

    def end_of_groups(self) -> bytes:
        return b""

    def tiv_set(self, tiv: Tensor) -> bytes:
        """Those of the next TIV set (N_TIV, D)."""
        return _bytes(to_stored("tiv", tiv, self._dtype))

    def end(self, shapes: Shapes, tiv_index: Tensor, fields: dict[str, Any]) -> tuple[bytes, bytes]:
        """Those behind the TIV sets, and the header."""
        data = _bytes(tiv_index)
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            "tv": (self._dtype, shapes[1]),
            "tiv": (self._dtype, shapes[0]),
            "tiv_index": ("int64", tuple(tiv_index.shape)),
        }
        if fields["chunk_frames"] is not None:
            data += _bytes(torch.tensor(fields["chunk_frames"]))
            tensors["chunk_frames"] = ("int64", (len(fields["chunk_frames"]),))
        return data, _header(metadata_from(fields), tensors, self.header_bytes)


class _Packed:
    """Bytes of a file with packed tokens (`tivtok.tokens.packed`), in the same order."""

    header_bytes = PACKED_HEADER_BYTES

    def __init__(self, codecs: Codecs) -> None:
        self._codecs = codecs
        self._blocks: list[int] = []  # their lengths
        self._waiting: list[Tensor] = []  # frame groups, fewer than fill a block

    def groups(self, tv: Tensor) -> bytes:
        self._waiting += tv.split(1, dim=1)
        data = b""
        while len(self._waiting) >= RUN:
            data += self._block(RUN)
        return data

    def end_of_groups(self) -> bytes:
        return self._block(len(self._waiting)) if self._waiting else b""

    def tiv_set(self, tiv: Tensor) -> bytes:
        return self._counted(encode_block(self._codecs.tiv, "tiv", tiv[None, None]))

    def end(self, shapes: Shapes, tiv_index: Tensor, fields: dict[str, Any]) -> tuple[bytes, bytes]:
        metadata = metadata_from(fields, PACKED)
        tail = encode_tail(self._codecs, shapes, self._blocks, tiv_index, fields["chunk_frames"], metadata)
        size = sum(self._blocks) + len(tail)
        return tail, _header(metadata, {PACKED: ("uint8", (size,))}, self.header_bytes)

    def _block(self, count: int) -> bytes:
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        return self._counted(encode_block(self._codecs.tv, "tv", torch.cat(now, dim=1)))

    def _counted(self, block: bytes) -> bytes:
        self._blocks.append(len(block))
        return block


_CODES = {"float32": ("F32", 4), "float16": ("F16", 2), "int64": ("I64", 8), "uint8": ("U8", 1)}


def _header(metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]], room: int) -> bytes:
    """safetensors: 8 bytes of length, then JSON, padded with spaces; offsets count from the end of the header."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        code, size = _CODES[dtype]
        start, end = end, end + size * math.prod(shape)
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False).encode().ljust(room - 8)
    if len(text) > room - 8:
        raise TokensError(f"preset and model_id must be shorter, got {metadata['preset']!r}, {metadata['model_id']!r}")
    return len(text).to_bytes(8, "little") + text


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()
