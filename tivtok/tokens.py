"""What the tokenizer makes of a video: time-invariant and time-variant tokens, in memory and on disk."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from tivtok.files import replacing

FORMAT = "tivtok.tokens"
FORMAT_VERSION = 1
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}

# What a file may claim, so that a hostile one cannot make decoding allocate without bound.
MAX_SIDE = 16_384
MAX_FRAMES_PER_GROUP = 64
MAX_FPS = 100_000


class TokensError(ValueError):
    """Tokens, or a token file, that cannot be used; the message says what came and what was expected."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of B equally long videos: frame group t is described by TIV set ``tiv_index[t]`` and tv[t].

    Attributes:
        tiv: (B, S, N_TIV, D) time-invariant tokens, S sets.
        tv: (B, T, N_TV, D) time-variant tokens, T frame groups.
        tiv_index: (T,) int64, the TIV set of each frame group.
        num_frames, height, width: of each video, before any padding: decoding returns exactly these.
        fps: frames per second of the source, None when it has none.
        preset: name of the model's configuration.
        model_id: short hash of the weights that made the tokens; only they can decode them.

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

    def __post_init__(self) -> None:
        _check_tensors(self.tiv, self.tv, self.tiv_index)
        groups = self.tv.shape[1]
        if not groups <= self.num_frames <= groups * MAX_FRAMES_PER_GROUP:
            raise TokensError(
                f"num_frames must be between {groups} and {groups * MAX_FRAMES_PER_GROUP} for {groups} frame groups, "
                f"got {self.num_frames}"
            )
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= MAX_SIDE:
                raise TokensError(f"{name} must be between 1 and {MAX_SIDE}, got {getattr(self, name)}")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise TokensError(f"fps must be None, or above 0 and at most {MAX_FPS}, got {self.fps}")
        for name in ("preset", "model_id"):
            text = getattr(self, name)
            if not (0 < len(text) <= 100 and text.isprintable()):
                raise TokensError(f"{name} must be 1 to 100 printable characters, got {text[:100]!r}")

    @property
    def num_tokens(self) -> int:
        """Tokens of one video: S * N_TIV + T * N_TV."""
        return math.prod(self.tiv.shape[1:3]) + math.prod(self.tv.shape[1:3])

    @property
    def num_values(self) -> int:
        """Numbers stored for one video: ``num_tokens`` * D."""
        return self.num_tokens * self.tiv.shape[3]

    @property
    def compression_rate(self) -> float:
        """Numbers stored over numbers in the video, ``num_values`` / (3 * F * H * W), as the paper counts it."""
        return self.num_values / (3 * self.num_frames * self.height * self.width)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tokens:
        """The same tokens on ``device``, with ``tiv`` and ``tv`` in ``dtype``."""
        return replace(
            self,
            tiv=self.tiv.to(device, dtype),
            tv=self.tv.to(device, dtype),
            tiv_index=self.tiv_index.to(device),
        )

    def save(self, path: str | os.PathLike[str], dtype: Literal["float32", "float16"] = "float32") -> None:
        """Write a safetensors file: the three tensors, everything else as string metadata.

        The file appears under its name when it is complete. "float32" comes back exactly. "float16" halves the file
        and rounds every value by at most 1 part in 2048, far below what the tokenizer itself loses.

        Raises:
            TokensError: a value is not finite, or beyond the range of ``dtype``.
            OSError: the file cannot be written.
        """
        if dtype not in STORED_DTYPES:
            raise TokensError(f"dtype must be one of {tuple(STORED_DTYPES)}, got {dtype!r}")
        tensors = {"tiv": self.tiv, "tv": self.tv}
        tensors = {name: x.detach().cpu().to(STORED_DTYPES[dtype]).contiguous() for name, x in tensors.items()}
        _check_finite(tensors, f"as {dtype}")
        tensors["tiv_index"] = self.tiv_index.cpu().contiguous()
        metadata = {
            "format": FORMAT,
            "version": str(FORMAT_VERSION),
            "num_frames": str(self.num_frames),
            "height": str(self.height),
            "width": str(self.width),
            "fps": "" if self.fps is None else repr(float(self.fps)),
            "preset": self.preset,
            "model_id": self.model_id,
        }
        with replacing(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokens:
        """Read and check a file written by `save`. The tokens are float32, whatever the file stores.

        Shapes and metadata are checked before any tensor is read, and nothing in the file is executed.

        Raises:
            OSError: the file cannot be read.
            TokensError: it is not a token file, one of another version, or damaged.
        """
        with open(path, "rb"):  # the plain OSError, before safetensors wraps it in one of its own
            pass
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = _read_metadata(file.metadata() or {})
                _check_stored(file)
                tensors = {name: file.get_tensor(name) for name in ("tiv", "tv", "tiv_index")}
            tiv_index = tensors.pop("tiv_index")
            _check_finite(tensors, "in the file")
            tokens = cls(tensors["tiv"].float(), tensors["tv"].float(), tiv_index, **metadata)
            _check_index(tokens)
        except safetensors.SafetensorError as error:
            raise TokensError(f"{path} is not a token file, or is damaged: {error}") from None
        except TokensError as error:
            raise TokensError(f"{path}: {error}") from None
        return tokens


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


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, x in tensors.items():
        if not x.isfinite().all():
            raise TokensError(f"{name} holds values that are not finite {where}")


def _check_index(tokens: Tokens) -> None:
    """Not part of ``__post_init__``: on a GPU it would wait for the device."""
    low, high = (int(x) for x in tokens.tiv_index.aminmax())
    sets = tokens.tiv.shape[1]
    if low < 0 or high >= sets:
        raise TokensError(f"tiv_index must be within 0..{sets - 1} for {sets} TIV sets, got {low}..{high}")


def _read_metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """The scalar fields of `Tokens` from a file's string metadata."""
    if metadata.get("format") != FORMAT:
        raise TokensError(f'not a token file: its metadata must say format "{FORMAT}"')
    if metadata.get("version") != str(FORMAT_VERSION):
        raise TokensError(f"version {metadata.get('version')!r} of the format, this program reads {FORMAT_VERSION}")
    kinds = {"num_frames": int, "height": int, "width": int, "fps": float, "preset": str, "model_id": str}
    missing = kinds.keys() - metadata.keys()
    if missing:
        raise TokensError(f"its metadata lacks {', '.join(sorted(missing))}")
    fields: dict[str, Any] = {}
    for name, kind in kinds.items():
        try:
            fields[name] = None if name == "fps" and not metadata[name] else kind(metadata[name])
        except ValueError:
            raise TokensError(f"its metadata says {name} = {metadata[name][:100]!r}") from None
    return fields


def _check_stored(file: safetensors.safe_open) -> None:
    names = sorted(file.keys())
    if names != ["tiv", "tiv_index", "tv"]:
        raise TokensError(f"it must hold the tensors tiv, tiv_index, tv, got {names[:10]}")
    for name, dtypes in {"tiv": ("F32", "F16"), "tv": ("F32", "F16"), "tiv_index": ("I64",)}.items():
        dtype = file.get_slice(name).get_dtype()
        if dtype not in dtypes:
            raise TokensError(f"{name} must be stored as {' or '.join(dtypes)}, got {dtype}")
