"""Packed tokens: those of a video, coded in blocks, as one run of bytes that can be read from anywhere in it.

A block for every `RUN` frame groups, then one for each TIV set, each of them coded for itself; then the *tail* (JSON,
deflated), which says where they are and how they are coded, and at the very end the tail's length and checksum as
uint32, little-endian. A block ends with its own CRC-32. The tail's covers the file's metadata, too.

In ragged tokens the tail also says how many tokens each TIV set and each frame group has, and a block holds no others:
those of its frame groups one after another, each for itself.
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
from tivtok.tokens.format import Counts, TokensError, check_finite

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
    counts: Counts | None


def encode_block(codec: Codec, name: str, x: Tensor, counts: Sequence[int] | None = None) -> bytes:
    """Code ``x``, (B, n, N, D), with its checksum behind it.

    Args:
        counts: how many of the N tokens there are, of each of the n entries; None for all.

    Raises:
        TokensError: a value is not finite, or beyond the codec.
    """
    if counts is not None:
        x = torch.cat([x[:, entry, :count] for entry, count in enumerate(counts)], dim=1)[:, :, None]
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
    counts: Counts | None = None,
) -> bytes:
    """The end of packed bytes.

    Args:
        shapes: of tiv and tv.
        blocks: the length of each block in bytes.
        metadata: of the file, to be covered by the checksum.
        counts: of ragged tokens.
    """
    stated: dict[str, Any] = {
        "codec": codecs.tiv.name,
        "parameters": [codec.parameters() for codec in codecs],
        "tiv": list(shapes[0]),
        "tv": list(shapes[1]),
        "run": RUN,
        "blocks": list(blocks),
        "tiv_index": tiv_index.tolist(),
        "chunk_frames": None if chunk_frames is None else list(chunk_frames),
    }
    if counts is not None:
        stated["counts"] = counts
    tail = zlib.compress(json.dumps(stated).encode(), 9)
    return tail + len(tail).to_bytes(4, "little") + _checksum(tail, metadata).to_bytes(4, "little")


def pack(
    codecs: Codecs,
    tiv: Tensor,
    tv: Tensor,
    tiv_index: Tensor,
    chunk_frames: Sequence[int] | None,
    metadata: dict[str, str],
    counts: Counts | None = None,
) -> bytes:
    """All of it at once, of tokens in memory."""
    blocks = []
    for name, x, run in (("tv", tv, RUN), ("tiv", tiv, 1)):
        codec, of_each = getattr(codecs, name), None if counts is None else getattr(counts, name)
        for first in range(0, x.shape[1], run):
            here = slice(first, first + run)
            blocks.append(encode_block(codec, name, x[:, here], None if of_each is None else of_each[here]))
    lengths, shapes = [len(block) for block in blocks], (tiv.shape, tv.shape)
    return b"".join(blocks) + encode_tail(codecs, shapes, lengths, tiv_index, chunk_frames, metadata, counts)


def unpack(data: Tensor, metadata: dict[str, str], ragged: bool = False) -> PackedParts:
    """Read the tail of ``data``, uint8 (n,), which may be mapped from a file.

    Args:
        ragged: whether it is to have counts.

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
        counts = _counts(stated["counts"], tiv, tv) if ragged else None
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TokensError(f"packed tokens that say what cannot be: {error}") from None
    groups = BlockTensor(Blocks(data, of_tv, tv, run, ends[: runs + 1], counts.tv if counts else None))
    sets = BlockTensor(Blocks(data, of_tiv, tiv, 1, ends[runs:], counts.tiv if counts else None))
    return PackedParts(sets, groups, index, chunk_frames, of_tv.levels if isinstance(of_tv, Codes) else None, counts)


@dataclass(frozen=True)
class Blocks:
    """Blocks of coded values, ``run`` entries of dimension 1 of ``shape`` (B, n, N, D) in each.

    Attributes:
        counts: how many of its N tokens each of the n entries has; the others are zero. None: all.
    """

    data: Tensor
    codec: Codec
    shape: tuple[int, ...]
    run: int
    ends: list[int]
    counts: tuple[int, ...] | None = None

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
        batch, _, number, dim = self.shape
        if self.counts is None:
            return self.codec.decode(data[:-4], (batch, here, number, dim))
        there = np.arange(number) < np.array(self.counts[first : first + here])[:, None]  # (here, N)
        x = np.zeros((batch, here, number, dim), np.float32)
        x[:, there] = self.codec.decode(data[:-4], (batch, int(there.sum()), 1, dim))[:, :, 0]
        return x


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


def _counts(stated: Any, tiv: Sequence[int], tv: Sequence[int]) -> Counts:
    of_tiv, of_tv = (tuple(int(n) for n in numbers) for numbers in stated)
    counts = Counts(of_tiv, of_tv)
    check_counts(counts, tiv, tv)
    return counts


def check_counts(counts: Counts, tiv: Sequence[int], tv: Sequence[int]) -> None:
    """
    Raises:
        TokensError: ``counts`` are not those of TIV sets and frame groups of such shapes (B, n, N, D).
    """
    for name, numbers, (_, entries, number, _) in (("TIV", counts.tiv, tiv), ("TV", counts.tv, tv)):
        if len(numbers) != entries or not all(min(1, number) <= n <= number for n in numbers):
            raise TokensError(
                f"counts must be {entries} numbers of {name} tokens from {min(1, number)} to {number}, "
                f"got {len(numbers)}: {numbers[:20]}"
            )


def _checksum(tail: bytes, metadata: dict[str, str]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode(), zlib.crc32(tail))
