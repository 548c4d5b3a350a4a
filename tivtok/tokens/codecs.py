"""Codecs: a run of TIV sets or frame groups to bytes and back, equal on every machine.

What `decode` computes are products and sums of float64, rounded to float32 at the end, and integer arithmetic, so that
its values do not depend on the processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from tivtok.tokens.format import TokensError

# Standard deviations that a table exists for, in steps: 2 ** (index / 4 - 2), from 1/4 to 861.
NUM_SCALES = 48
SIGMAS_IN_TABLE = 6  # beyond them a value is escaped
FRACTIONS = 8  # of a step, that centres are rounded to
MAX_LEVELS = 2**16
_WORD = 2**16
_LARGEST = 2**31 - 1  # of a quantised value


class Codec(Protocol):
    """Values (B, n, N, D) of n TIV sets or frame groups, as float32, to bytes and back."""

    @property
    def name(self) -> str: ...

    def encode(self, x: np.ndarray) -> bytes: ...

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray: ...

    def parameters(self) -> dict[str, Any]:
        """What `codec_of` needs to make it again, for JSON."""


class Codecs(NamedTuple):
    """Codecs of TIV sets and of frame groups, of one name."""

    tiv: Codec
    tv: Codec


@dataclass(frozen=True)
class Floats:
    """Values as they are, or rounded: for tokens whose numbers differ, which no plain tensor can hold.

    Attributes:
        name: "float32" or "float16".
    """

    name: str

    def encode(self, x: np.ndarray) -> bytes:
        """
        Raises:
            TokensError: a value is beyond float16.
        """
        with np.errstate(over="ignore"):
            stored = x.astype(_FLOATS[self.name])
        if not np.isfinite(stored).all():
            raise TokensError(f"there are values that are not finite as {self.name}")
        return stored.tobytes()

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(_FLOATS[self.name])
        if len(data) != dtype.itemsize * math.prod(shape):
            raise TokensError(f"{len(data)} bytes for {shape} values of {self.name}")
        return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)

    def parameters(self) -> dict[str, Any]:
        return {}


_FLOATS = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True)
class Int8:
    """8-bit integers, scaled by the largest magnitude of each TIV set or frame group: off by 1/254 of it at most."""

    name = "int8"

    def encode(self, x: np.ndarray) -> bytes:
        """float32 (B, n, N, D) -> the B * n scales as float32, then the integers."""
        largest = np.abs(x).max(axis=(2, 3), keepdims=True, initial=0).astype("<f4")
        steps = largest.astype(np.float64) / 127
        q = np.rint(np.divide(x, steps, out=np.zeros(x.shape), where=steps > 0)).astype(np.int8)
        return largest.tobytes() + q.tobytes()

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        count = shape[0] * shape[1]
        if len(data) != 4 * count + math.prod(shape):
            raise TokensError(f"{len(data)} bytes for {shape} values of int8")
        largest = np.frombuffer(data, "<f4", count).reshape(*shape[:2], 1, 1)
        q = np.frombuffer(data, np.int8, offset=4 * count).reshape(shape)
        return (q * (largest.astype(np.float64) / 127)).astype(np.float32)

    def parameters(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Coded:
    """Uniform quantisation, then a range coder with one Gaussian per channel.

    Attributes:
        step: between two values that can be told apart.
        centres: (D,) the mean of each channel, in `FRACTIONS` of a step.
        scales: (D,) the index of its standard deviation, 0 to `NUM_SCALES` - 1.
    """

    step: float
    centres: tuple[int, ...]
    scales: tuple[int, ...]

    name = "coded"

    @classmethod
    def fitted(cls, mean: np.ndarray, std: np.ndarray, step: float) -> Coded:
        """The codec for channels of such means and standard deviations, both (D,)."""
        centres = np.rint(mean.astype(np.float64) / step * FRACTIONS).astype(int)
        scales = np.rint(4 * (np.log2(np.maximum(std.astype(np.float64) / step, 2.0**-4)) + 2))
        return cls(step, tuple(centres.tolist()), tuple(scales.clip(0, NUM_SCALES - 1).astype(int).tolist()))

    def encode(self, x: np.ndarray) -> bytes:
        """float32 (B, n, N, D) -> what the range coder makes of it, channels of one scale together.

        Raises:
            TokensError: a value is beyond 2 ** 31 steps.
        """
        q = np.rint(x.astype(np.float64) / self.step - self._offsets()).reshape(-1, x.shape[-1])
        if np.abs(q).max(initial=0) > _LARGEST:
            raise TokensError(f"a value is beyond {_LARGEST} steps of {self.step:g}")
        coder = _stream().queue.RangeEncoder()
        for scale, channels in self._channels():
            _encode(coder, q[:, channels].astype(np.int64).ravel(), scale)
        return coder.get_compressed().astype("<u4").tobytes()

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        rows = math.prod(shape[:-1])
        if shape[-1] != len(self.centres) or len(data) % 4:
            raise TokensError(f"{len(data)} bytes for {shape} coded values of {len(self.centres)} channels")
        coder = _stream().queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        q = np.empty((rows, shape[-1]))
        for scale, channels in self._channels():
            q[:, channels] = _decode(coder, rows * len(channels), scale).reshape(rows, -1)
        return ((q + self._offsets()) * self.step).astype(np.float32).reshape(shape)

    def parameters(self) -> dict[str, Any]:
        return {"step": self.step, "centres": self.centres, "scales": self.scales}

    def _offsets(self) -> np.ndarray:
        return np.array(self.centres) / FRACTIONS

    def _channels(self) -> list[tuple[int, list[int]]]:
        return [(scale, [c for c, s in enumerate(self.scales) if s == scale]) for scale in sorted(set(self.scales))]


@dataclass(frozen=True)
class Codes:
    """Codes of FSQ, exactly, in as many bits as they have; other values become the nearest.

    Attributes:
        levels: as of `tivtok.model.quantizer.FSQ`.
    """

    levels: tuple[int, ...]

    name = "codes"

    def encode(self, x: np.ndarray) -> bytes:
        """float32 (B, n, N, D) -> what the range coder makes of it, channel after channel of a code."""
        coder = _stream().queue.RangeEncoder()
        for place, number in enumerate(self.levels):
            half = number // 2
            q = np.rint(x[..., place :: len(self.levels)].astype(np.float64) * half + half).clip(0, number - 1)
            coder.encode(q.astype(np.int32).ravel(), _stream().model.Uniform(number))
        return coder.get_compressed().astype("<u4").tobytes()

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        if shape[-1] % len(self.levels) or len(data) % 4:
            raise TokensError(f"{len(data)} bytes for {shape} values of codes of {len(self.levels)} channels")
        coder = _stream().queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        x = np.empty(shape, np.float32)
        for place, number in enumerate(self.levels):
            part = x[..., place :: len(self.levels)]
            part[:] = (coder.decode(_stream().model.Uniform(number), part.size).reshape(part.shape) - number // 2) / (
                number // 2
            )
        return x

    def parameters(self) -> dict[str, Any]:
        return {"levels": self.levels}


def codec_of(name: str, parameters: dict[str, Any]) -> Codec:
    """The codec with such `Codec.parameters`.

    Raises:
        TokensError: there is none.
    """
    if name == Int8.name and not parameters:
        return Int8()
    if name in _FLOATS and not parameters:
        return Floats(name)
    if name == Codes.name and parameters.keys() == {"levels"}:
        levels = tuple(parameters["levels"])
        if not levels or not all(type(number) is int and 3 <= number <= MAX_LEVELS for number in levels):
            raise TokensError(f"no codes of levels {levels[:20]}")
        return Codes(levels)
    try:
        codec = Coded(float(parameters["step"]), tuple(parameters["centres"]), tuple(parameters["scales"]))
        integers = all(type(i) is int for i in codec.centres + codec.scales)
    except (KeyError, TypeError, ValueError) as error:
        raise TokensError(f"no parameters of a codec: {error}") from None
    good = integers and len(codec.centres) == len(codec.scales) and all(0 <= i < NUM_SCALES for i in codec.scales)
    if name != Coded.name or not good or not 0 < codec.step < math.inf:
        raise TokensError(f"no codec {name[:20]!r} with such parameters")
    return codec


def _encode(coder: Any, q: np.ndarray, scale: int) -> None:
    """Encode int64 (n,): indices into the table, then those that are not in it as two words each."""
    radius = _radius(scale)
    escaped = np.abs(q) > radius
    coder.encode(np.where(escaped, 2 * radius + 1, q + radius).astype(np.int32), _table(scale))
    if escaped.any():
        words = np.stack(np.divmod(q[escaped] + 2**31, _WORD), axis=1).ravel()
        coder.encode(words.astype(np.int32), _stream().model.Uniform(_WORD))


def _decode(coder: Any, count: int, scale: int) -> np.ndarray:
    radius = _radius(scale)
    q = coder.decode(_table(scale), count).astype(np.int64) - radius
    escaped = q == radius + 1
    if escaped.any():
        words = coder.decode(_stream().model.Uniform(_WORD), 2 * int(escaped.sum())).astype(np.int64).reshape(-1, 2)
        q[escaped] = words[:, 0] * _WORD + words[:, 1] - 2**31
    return q


def _radius(scale: int) -> int:
    """The largest magnitude in the table of a scale."""
    return 1 + math.ceil(SIGMAS_IN_TABLE * 2.0 ** (scale / 4 - 2))


@cache
def _table(scale: int) -> Any:
    """The range coder's model: -radius to radius, then the escape.

    Frequencies are whole numbers from decimal arithmetic, which is software: ``exp`` of the C library differs between
    machines in its last bit, and one bit would garble all that follows.
    """
    context = Context(prec=40)
    sigma = context.power(2, Decimal(scale - 8) / 4)
    radius = _radius(scale)
    half = [context.exp(context.divide(-(k * k), 2 * sigma * sigma)) for k in range(radius + 1)]
    frequencies = [1 + int(weight * 2**20) for weight in half]
    return _stream().model.Categorical(
        np.array([*frequencies[:0:-1], *frequencies, 1], dtype=np.float64), perfect=False
    )


@cache
def _stream() -> Any:
    """Its stream codes. What has no coded tokens does without the library."""
    try:
        import constriction
    except ModuleNotFoundError:
        raise TokensError("coded tokens and integer codes need constriction: pip install 'tivtok[coded]'") from None
    return constriction.stream
