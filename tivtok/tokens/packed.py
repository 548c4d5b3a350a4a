"""Packed tokens: those of a video, coded in blocks, as one run of bytes that can be read from anywhere in it.

A block for every `RUN` frame groups, then one for each TIV set, each of them coded for itself; then the *tail* (JSON,
deflated), which says where they are and how they are coded, and at the very end the tail's length and checksum as
uint32, little-endian. A block ends with its own CRC-32. The tail's covers the file's metadata, too.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tivtok.tokens.codecs import Codec, Codecs, Codes, codec_of
from tivtok.tokens.format import TokensError, check_finite

RUN = 16  # frame groups coded together
# What a file may claim, so that a hostile one cannot make decoding allocate without bound.
MAX_TAIL = 2**26  # bytes of JSON, of some million frame groups
MAX_BLOCK = 2**28  # values


class PackedParts(NamedTuple):
    """Parts of `Tokens` that packed bytes hold; ``tiv`` and ``tv`` are decoded where they are used."""

    tiv: Tensor
    tv: Tensor
    tiv_index: Tensor
    chunk_frames: tuple[int, ...] | None
    levels: tuple[int, ...] | None


def encode_block(codec: Codec, name: str, x: Tensor) -> bytes:
    """Code ``x``, (B, n, N, D), with its checksum behind it.

    Raises:
        TokensError: a value is not finite, or beyond the codec.
    """
    check_finite(name, x, f"as {codec.name}")
    data = codec.encode(x.detach().cpu().float().numpy())
    return data + zlib.crc32(data).to_bytes(4, "little")


def encode_tail(
    codecs: Codecs,
    shapes: tuple[Sequence[int], Sequence[int]],
    blocks: Sequence[int],
    tiv_index: Tensor,
    chunk_frames: Sequence[int] | None,
    metadata: dict[str, str],
) -> bytes:
    """The end of packed bytes.

    Args:
        shapes: of tiv and tv.
        blocks: the length of each block in bytes.
        metadata: of the file, to be covered by the checksum.
    """
    stated = {
        "codec": codecs.tiv.name,
        "parameters": [codec.parameters() for codec in codecs],
        "tiv": list(shapes[0]),
        "tv": list(shapes[1]),
        "run": RUN,
        "blocks": list(blocks),
        "tiv_index": tiv_index.tolist(),
        "chunk_frames": None if chunk_frames is None else list(chunk_frames),
    }
    tail = zlib.compress(json.dumps(stated).encode(), 9)
    return tail + len(tail).to_bytes(4, "little") + _checksum(tail, metadata).to_bytes(4, "little")


def pack(
    codecs: Codecs,
    tiv: Tensor,
    tv: Tensor,
    tiv_index: Tensor,
    chunk_frames: Sequence[int] | None,
    metadata: dict[str, str],
) -> bytes:
    """All of it at once, of tokens in memory."""
    blocks = [encode_block(codecs.tv, "tv", x) for x in tv.split(RUN, dim=1)]
    blocks += [encode_block(codecs.tiv, "tiv", x) for x in tiv.split(1, dim=1)]
    lengths = [len(block) for block in blocks]
    return b"".join(blocks) + encode_tail(codecs, (tiv.shape, tv.shape), lengths, tiv_index, chunk_frames, metadata)


def unpack(data: Tensor, metadata: dict[str, str]) -> PackedParts:
    """Read the tail of ``data``, uint8 (n,), which may be mapped from a file.

    Raises:
        TokensError: it is damaged, or ``metadata`` has changed.
    """
    stated = _tail(data, metadata)
    try:
        run, lengths = int(stated["run"]), [int(n) for n in stated["blocks"]]
        tiv, tv = _shape(stated["tiv"], 1), _shape(stated["tv"], run)
        runs = -(-tv[1] // run)
        if len(lengths) != runs + tiv[1] or min(lengths) < 4:
            raise TokensError(f"{len(lengths)} blocks of {tiv[1]} TIV sets and {tv[1]} frame groups")
        ends = list(accumulate(lengths, initial=0))
        of_tiv, of_tv = (codec_of(stated["codec"], parameters) for parameters in stated["parameters"])
        index = torch.tensor(stated["tiv_index"], dtype=torch.int64)
        chunk_frames = None if stated["chunk_frames"] is None else tuple(int(n) for n in stated["chunk_frames"])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TokensError(f"packed tokens that say what cannot be: {error}") from None
    groups = BlockTensor(Blocks(data, of_tv, tv, run, ends[: runs + 1]))
    sets = BlockTensor(Blocks(data, of_tiv, tiv, 1, ends[runs:]))
    return PackedParts(sets, groups, index, chunk_frames, of_tv.levels if isinstance(of_tv, Codes) else None)


@dataclass(frozen=True)
class Blocks:
    """Blocks of coded values, ``run`` entries of dimension 1 of ``shape`` (B, n, N, D) in each."""

    data: Tensor
    codec: Codec
    shape: tuple[int, ...]
    run: int
    ends: list[int]

    def entries(self, wanted: Iterable[int]) -> Tensor:
        """Entries of dimension 1, by number: float32 (B, len(wanted), N, D). Decodes the blocks that they are in.

        Raises:
            TokensError: a block is damaged.
        """
        numbers = list(wanted)
        decoded = {block: self._decode(block) for block in sorted({number // self.run for number in numbers})}
        columns = [decoded[number // self.run][:, number % self.run] for number in numbers]
        empty = torch.empty(self.shape[0], 0, *self.shape[2:])
        return torch.from_numpy(np.stack(columns, axis=1)) if columns else empty

    def _decode(self, block: int) -> np.ndarray:
        data = self.data[self.ends[block] : self.ends[block + 1]].numpy().tobytes()
        first = block * self.run
        here = min(self.run, self.shape[1] - first)
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise TokensError(f"damaged: the block of entries {first} to {first + here - 1} fails its checksum")
        return self.codec.decode(data[:-4], (self.shape[0], here, *self.shape[2:]))


class BlockTensor(Tensor):
    """A float32 tensor (B, n, N, D) that is decoded as it is used.

    Indexing along dimension 1, by a slice or by numbers, decodes only the blocks it needs; all else decodes everything.
    """

    blocks: Blocks

    @staticmethod
    def __new__(cls, blocks: Blocks) -> BlockTensor:
        made = Tensor._make_wrapper_subclass(cls, blocks.shape, dtype=torch.float32)  # type: ignore[attr-defined]
        made.blocks = blocks
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"BlockTensor(shape={tuple(self.shape)}, codec={self.blocks.codec.name!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        part = _PARTS.get(func, lambda *_: None)(*args) if not kwargs else None
        if part is not None:
            return args[0].blocks.entries(part)
        plain = torch.utils._pytree.tree_map_only(cls, _whole, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def _whole(x: BlockTensor) -> Tensor:
    return x.blocks.entries(range(x.shape[1]))


def _sliced(x: Any, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> range | None:
    return range(x.shape[1])[slice(start, stop, step)] if dim == 1 else None


def _selected(x: Any, indices: Sequence[Tensor | None]) -> list[int] | None:
    if len(indices) != 2 or indices[0] is not None or indices[1] is None or indices[1].dtype != torch.int64:
        return None
    count = x.shape[1]
    numbers = indices[1].tolist()
    if indices[1].ndim != 1 or not all(-count <= number < count for number in numbers):
        return None  # torch says what is wrong
    return [number % count for number in numbers]


# Operators that take a part along dimension 1 -> the numbers of its entries, or None where they take another.
_PARTS: dict[Any, Callable[..., Iterable[int] | None]] = {
    torch.ops.aten.slice.Tensor: _sliced,
    torch.ops.aten.index.Tensor: _selected,
}


def _tail(data: Tensor, metadata: dict[str, str]) -> dict[str, Any]:
    end = data[-8:].numpy().tobytes()
    length = int.from_bytes(end[:4], "little")
    if len(end) < 8 or length > len(data) - 8:
        raise TokensError("damaged: packed tokens without their tail")
    tail = data[len(data) - 8 - length : len(data) - 8].numpy().tobytes()
    if _checksum(tail, metadata) != int.from_bytes(end[4:], "little"):
        raise TokensError("damaged: its tail and metadata fail their checksum")
    inflate = zlib.decompressobj()
    try:
        stated = json.loads(inflate.decompress(tail, MAX_TAIL))
    except (zlib.error, ValueError, RecursionError) as error:
        raise TokensError(f"packed tokens whose tail cannot be read: {error}") from None
    if not isinstance(stated, dict):
        raise TokensError("packed tokens whose tail is no JSON object")
    return stated


def _shape(stated: Sequence[int], run: int) -> tuple[int, ...]:
    shape = tuple(int(n) for n in stated)
    if run < 1 or len(shape) != 4 or min(*shape[:2], shape[3]) < 1 or shape[2] < 0:
        raise TokensError(f"a shape of {stated}, {run} in a block")
    if shape[0] * min(run, shape[1]) * shape[2] * shape[3] > MAX_BLOCK:
        raise TokensError(f"a shape of {stated}, {run} in a block: at most {MAX_BLOCK} values may be")
    return shape


def _checksum(tail: bytes, metadata: dict[str, str]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode(), zlib.crc32(tail))
