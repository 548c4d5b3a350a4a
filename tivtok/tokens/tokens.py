"""Tokens of a video, time-invariant and time-variant, in memory and on disk."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tivtok.files import replacing
from tivtok.model.quantizer import from_codes, to_codes
from tivtok.tokens.calibration import Calibration, codecs_for
from tivtok.tokens.codecs import MAX_LEVELS
from tivtok.tokens.format import (
    FIELDS,
    PACKED,
    RAGGED,
    Counts,
    StoredDtype,
    TokensError,
    check_finite,
    map_file,
    metadata_from,
    to_stored,
)
from tivtok.tokens.packed import check_counts, pack, unpack
from tivtok.tokens.statistics import LatentStats

__all__ = ["Tokens", "TokensError"]

NORMALIZED = "/normalized"  # added to the model id, so that nobody decodes such tokens by mistake

# What a file may claim, so that a hostile one cannot make decoding allocate without bound.
MAX_SIDE = 16_384
MAX_PIXELS = 36_000_000  # of a frame: a little above 8K
MAX_FRAMES_PER_GROUP = 64
MAX_FPS = 100_000


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch of B equally long videos: frame group t is described by TIV set ``tiv_index[t]`` and tv[t].

    Attributes:
        tiv: (B, S, N_TIV, D) time-invariant tokens, S sets.
        tv: (B, T, N_TV, D) time-variant tokens, T frame groups.
        tiv_index: (T,) int64, the TIV set of each frame group.
        num_frames, height, width: of each video, before any padding: decoding returns exactly these.
        fps: frames per second of the source, None when it has none.
        preset: name of the model's configuration.
        model_id: short id of the weights that made the tokens; only they can decode them.
        chunk_frames: video frames of each chunk, where cuts have ended some; None where only the last chunk may be
            shorter than the model's.
        levels: of FSQ, where the tokens are integer codes (`codes`); None where they are not.
        counts: how many tokens each TIV set and each frame group has, the first of N_TIV and N_TV, where the numbers
            differ; the places of the others are zero and count for nothing. None where all are there.

    Raises:
        TokensError: shapes, dtypes or values do not fit one another.
    """

    tiv: Tensor
    tv: Tensor
    tiv_index: Tensor
    num_frames: int
    height: int
    width: int
    fps: float | None
    preset: str
    model_id: str
    chunk_frames: tuple[int, ...] | None = None
    levels: tuple[int, ...] | None = None
    counts: Counts | None = None

    def __post_init__(self) -> None:
        _check_tensors(self.tiv, self.tv, self.tiv_index)
        check_fields(self.tv.shape[1], **{name: getattr(self, name) for name in (*FIELDS, "chunk_frames", "levels")})
        if self.levels is not None and (not self.levels or self.tv.shape[3] % len(self.levels)):
            raise TokensError(f"D must be a multiple of the {len(self.levels)} levels, got {self.tv.shape[3]}")
        if self.counts is not None:
            check_counts(self.counts, self.tiv.shape, self.tv.shape)

    def __eq__(self, other: object) -> bool:
        """Whether all of it is the same: every value, its dtype, and the other fields; on whatever device."""
        if not isinstance(other, Tokens):
            return NotImplemented
        return all(_same(mine, getattr(other, name)) for name, mine in vars(self).items())

    __hash__ = None  # type: ignore[assignment]

    @property
    def num_tokens(self) -> int:
        """Tokens of one video: S * N_TIV + T * N_TV, or those of ``counts``."""
        if self.counts is not None:
            return sum(self.counts.tiv) + sum(self.counts.tv)
        return math.prod(self.tiv.shape[1:3]) + math.prod(self.tv.shape[1:3])

    @property
    def num_values(self) -> int:
        """Numbers stored for one video: ``num_tokens`` * D."""
        return self.num_tokens * self.tiv.shape[3]

    @property
    def compression_rate(self) -> float:
        """Numbers stored over numbers in the video, ``num_values`` / (3 * F * H * W), as the paper counts it."""
        return self.num_values / (3 * self.num_frames * self.height * self.width)

    @property
    def num_codes(self) -> int | None:
        """How many codes there are, None where the tokens are no codes."""
        return None if self.levels is None else math.prod(self.levels)

    @property
    def codes(self) -> tuple[Tensor, Tensor]:
        """TIV and TV tokens as integers from 0 to ``num_codes`` - 1: int64 (B, S, N_TIV, C) and (B, T, N_TV, C).

        A token has C = D / len(levels) codes.

        Raises:
            TokensError: the tokens are no codes: the model that made them has no FSQ.
        """
        return to_codes(self.tiv, self._levels()), to_codes(self.tv, self._levels())

    def with_codes(self, tiv: Tensor, tv: Tensor) -> Tokens:
        """These tokens with other `codes`, those that a generator has drawn, say.

        Raises:
            TokensError: the tokens are no codes, or there are no such codes.
        """
        levels = self._levels()
        try:
            return replace(self, tiv=from_codes(tiv, levels), tv=from_codes(tv, levels)).cleared()
        except ValueError as error:
            raise TokensError(str(error)) from None

    def _levels(self) -> tuple[int, ...]:
        if self.levels is None:
            raise TokensError(f"the tokens of model {self.preset} are no codes: its config has no quantizer fsq")
        return self.levels

    def there(self) -> tuple[Tensor, Tensor]:
        """Which tokens there are: bool (S, N_TIV) and (T, N_TV), on the CPU."""
        of_tiv, of_tv = (
            torch.ones(x.shape[1:3], dtype=torch.bool)
            if numbers is None
            else torch.arange(x.shape[2]) < torch.tensor(numbers)[:, None]
            for x, numbers in zip((self.tiv, self.tv), self.counts or (None, None), strict=True)
        )
        return of_tiv, of_tv

    def cleared(self) -> Tokens:
        """The same tokens with zeros in the places that ``counts`` leaves empty."""
        if self.counts is None:
            return self
        tiv, tv = (
            x.masked_fill(~there.to(x.device)[..., None], 0)
            for x, there in zip((self.tiv, self.tv), self.there(), strict=True)
        )
        return replace(self, tiv=tiv, tv=tv)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tokens:
        """The same tokens on ``device``, with ``tiv`` and ``tv`` in ``dtype``."""
        return replace(
            self,
            tiv=self.tiv.to(device, dtype),
            tv=self.tv.to(device, dtype),
            tiv_index=self.tiv_index.to(device),
        )

    def normalize(self, stats: LatentStats) -> Tokens:
        """(tokens - mean) / std, for a generator to learn on; they cannot be decoded before `denormalize`.

        Raises:
            TokensError: they are not of the model that ``stats`` describe, or normalised already.
        """
        self._check_model(stats.model_id)
        return replace(
            self,
            tiv=(self.tiv - _first(stats.tiv_mean, self.tiv)) / _first(stats.tiv_std, self.tiv),
            tv=(self.tv - _first(stats.tv_mean, self.tv)) / _first(stats.tv_std, self.tv),
            model_id=stats.model_id + NORMALIZED,
            levels=None,
        ).cleared()

    def denormalize(self, stats: LatentStats) -> Tokens:
        """The inverse of `normalize`: tokens that the model decodes.

        Raises:
            TokensError: they are not of the model that ``stats`` describe, or not normalised.
        """
        self._check_model(stats.model_id + NORMALIZED)
        return replace(
            self,
            tiv=self.tiv * _first(stats.tiv_std, self.tiv) + _first(stats.tiv_mean, self.tiv),
            tv=self.tv * _first(stats.tv_std, self.tv) + _first(stats.tv_mean, self.tv),
            model_id=stats.model_id,
        ).cleared()

    def _check_model(self, expected: str) -> None:
        if self.model_id != expected:
            raise TokensError(f"the tokens must be of model {expected}, got {self.model_id}")

    def save(
        self, path: str | os.PathLike[str], dtype: StoredDtype = "float32", calibration: Calibration | None = None
    ) -> None:
        """Write a safetensors file (`tivtok.tokens.format`).

        The file appears under its name when it is complete. "float32" comes back exactly. "float16" halves the file
        and rounds every value by at most 1 part in 2048, far below what the tokenizer itself loses. "int8" halves it
        again, and is off by at most 1/254 of the largest magnitude in a TIV set or frame group. "coded" is quantised as
        finely as ``calibration`` says, then entropy coded. Codes are stored as such, whatever ``dtype``. Of tokens with
        ``counts`` those that are there are stored.

        Args:
            calibration: of the model that made the tokens, for "coded" alone.

        Raises:
            TokensError: a value is not finite or beyond the range of ``dtype``, or the calibration does not fit.
            OSError: the file cannot be written.
        """
        tensors, metadata = self.stored(dtype, calibration)
        with replacing(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    def stored(
        self, dtype: StoredDtype, calibration: Calibration | None = None
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and string metadata of a file with these tokens. Args, Raises: as in `save`."""
        codecs = codecs_for(dtype, calibration, self.model_id, self.levels, ragged=self.counts is not None)
        packed_as = None if codecs is None else PACKED if self.counts is None else RAGGED
        metadata = metadata_from(vars(self), packed_as)
        if codecs is not None and packed_as is not None:
            data = pack(codecs, self.tiv, self.tv, self.tiv_index, self.chunk_frames, metadata, self.counts)
            return {packed_as: torch.frombuffer(bytearray(data), dtype=torch.uint8)}, metadata
        tensors = {name: to_stored(name, getattr(self, name), dtype) for name in ("tiv", "tv")}
        tensors["tiv_index"] = self.tiv_index.cpu().contiguous()
        if self.chunk_frames is not None:
            tensors["chunk_frames"] = torch.tensor(self.chunk_frames)
        return tensors, metadata

    @classmethod
    def from_stored(cls, tensors: Mapping[str, Tensor], fields: dict[str, Any]) -> Tokens:
        """The inverse of `stored`, of the scalar fields that its metadata is made of.

        Raises:
            TokensError: they do not fit one another, or are damaged.
        """
        for packed_as in (PACKED, RAGGED):
            if packed_as in tensors:
                parts = unpack(tensors[packed_as], metadata_from(fields, packed_as), ragged=packed_as == RAGGED)
                return cls(**parts._asdict(), **fields)
        lengths = tensors.get("chunk_frames")
        chunk_frames = None if lengths is None else _frame_counts(lengths)
        return cls(tensors["tiv"], tensors["tv"], tensors["tiv_index"], **fields, chunk_frames=chunk_frames)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Tokens:
        """Map a file written by `save` or `TokenWriter`: only the parts that are used are read.

        ``tiv`` and ``tv`` have the dtype they are stored in; those of "int8" and "coded" files are float32 and decoded
        as they are used, the blocks alone that hold what is asked for. Shapes and metadata are checked here, indices
        and values when they are used (by `sets_of` and `tivtok.streaming.decode_stream`).

        Raises:
            OSError: the file cannot be read.
            TokensError: it is not a token file, one of another version, or damaged.
        """
        try:
            return cls.from_stored(*map_file(path))
        except TokensError as error:
            raise TokensError(f"{path}: {error}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokens:
        """Read and check all of a file. The tokens are float32, whatever the file stores.

        Raises:
            OSError, TokensError: as in `open`; also where a value is not finite or an index is out of range.
        """
        mapped = cls.open(path)
        try:
            tiv, tv = (x.to(torch.float32, copy=True) for x in (mapped.tiv, mapped.tv))
            for name, x in (("tiv", tiv), ("tv", tv)):
                check_finite(name, x, "in the file")
            sets = mapped.sets_of(torch.arange(mapped.tv.shape[1]))
        except TokensError as error:
            raise TokensError(f"{path}: {error}") from None
        return replace(mapped, tiv=tiv, tv=tv, tiv_index=sets)

    def counts_of(self, groups: Tensor) -> Tensor:
        """How many tokens of its TIV set, and how many TV tokens, each of the frame groups (n,) has: int64 (n, 2).

        Raises:
            TokensError: as in `sets_of`.
        """
        sets = self.sets_of(groups)
        if self.counts is None:
            return torch.tensor([self.tiv.shape[2], self.tv.shape[2]]).expand(len(groups), 2)
        of_tiv, of_tv = (torch.tensor(numbers) for numbers in self.counts)
        return torch.stack([of_tiv[sets], of_tv[groups.cpu()]], dim=1)

    def sets_of(self, groups: Tensor) -> Tensor:
        """The TIV set of each of the frame groups (n,), as int64 (n,) on the CPU.

        Raises:
            TokensError: an index is out of range. (``__post_init__`` does not check: it would wait for a GPU.)
        """
        index = self.tiv_index[groups.to(self.tiv_index.device)].cpu()
        sets = self.tiv.shape[1]
        if len(index) and (index.min() < 0 or index.max() >= sets):
            raise TokensError(
                f"tiv_index must be within 0..{sets - 1} for {sets} TIV sets, got {index.min()}..{index.max()}"
            )
        return index


def check_fields(
    groups: int,
    num_frames: int,
    height: int,
    width: int,
    fps: float | None,
    preset: str,
    model_id: str,
    chunk_frames: tuple[int, ...] | None,
    levels: tuple[int, ...] | None = None,
) -> None:
    """Check the fields of `Tokens` that are no tensors, for ``groups`` frame groups.

    Raises:
        TokensError: one of them has a value that is not possible.
    """
    if not groups <= num_frames <= groups * MAX_FRAMES_PER_GROUP:
        raise TokensError(
            f"num_frames must be between {groups} and {groups * MAX_FRAMES_PER_GROUP} for {groups} frame groups, "
            f"got {num_frames}"
        )
    for name, side in (("height", height), ("width", width)):
        if not 1 <= side <= MAX_SIDE:
            raise TokensError(f"{name} must be between 1 and {MAX_SIDE}, got {side}")
    if height * width > MAX_PIXELS:
        raise TokensError(f"height x width must be at most {MAX_PIXELS:,} pixels, got {height} x {width}")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise TokensError(f"fps must be None, or above 0 and at most {MAX_FPS}, got {fps}")
    for name, text in (("preset", preset), ("model_id", model_id)):
        if not (0 < len(text) <= 100 and text.isprintable()):
            raise TokensError(f"{name} must be 1 to 100 printable characters, got {text[:100]!r}")
    if levels is not None and not all(3 <= number <= MAX_LEVELS for number in levels):
        raise TokensError(f"levels must be between 3 and {MAX_LEVELS} each, got {levels}")
    if chunk_frames is not None and (min(chunk_frames, default=0) < 1 or sum(chunk_frames) != num_frames):
        raise TokensError(
            f"chunk_frames must be at least 1 each and {num_frames} in all, "
            f"got {len(chunk_frames)} chunks of {sum(chunk_frames)} frames"
        )


def _first(numbers: Tensor, tokens: Tensor) -> Tensor:
    """``numbers`` (N, D) of the tokens (B, n, N or fewer, D) that there are."""
    return numbers[: tokens.shape[2]].to(tokens)


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    return a == b


def _frame_counts(lengths: Tensor) -> tuple[int, ...]:
    if lengths.ndim != 1:
        raise TokensError(f"chunk_frames must be (K,), got {tuple(lengths.shape)}")
    return tuple(lengths.tolist())


def _check_tensors(tiv: Tensor, tv: Tensor, tiv_index: Tensor) -> None:
    if tiv.ndim != 4 or tv.ndim != 4 or not tiv.is_floating_point() or not tv.is_floating_point():
        raise TokensError(
            "tiv must be floating point (B, S, N_TIV, D) and tv (B, T, N_TV, D), "
            f"got {tiv.dtype} {tuple(tiv.shape)} and {tv.dtype} {tuple(tv.shape)}"
        )
    if tiv.shape[0] != tv.shape[0] or tiv.shape[3] != tv.shape[3]:
        raise TokensError(f"tiv and tv must have one B and one D, got {tuple(tiv.shape)} and {tuple(tv.shape)}")
    if 0 in (*tiv.shape[:2], *tv.shape[:2], tiv.shape[3]):
        raise TokensError(f"tiv and tv must not be empty, got {tuple(tiv.shape)} and {tuple(tv.shape)}")
    if tiv_index.dtype != torch.int64 or tiv_index.shape != tv.shape[1:2]:
        raise TokensError(
            f"tiv_index must be int64 of shape ({tv.shape[1]},), one TIV set per frame group, "
            f"got {tiv_index.dtype} {tuple(tiv_index.shape)}"
        )
