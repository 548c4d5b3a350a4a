"""Token files: safetensors, with everything that is no tensor as string metadata.

Versions 1 and 2:

| tensor | shape | stored as |
|---|---|---|
| tiv | (B, S, N_TIV, D) | F32 or F16 |
| tv | (B, T, N_TV, D) | F32 or F16 |
| tiv_index | (T,) | I64 |
| chunk_frames | (K,) | I64, in version 2 alone: the frames of each chunk, where cuts have ended some |

Version 3 has one tensor, ``packed``, U8: values as 8-bit integers or coded, with checksums (`tivtok.tokens.packed`).
Version 4 has one, ``ragged``, U8: the same of values of any dtype, where TIV sets or frame groups have numbers of
tokens of their own.

The order of the tensors in the file is free. Nothing in it is executed or unpickled.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

import safetensors
import torch
from torch import Tensor

from tivtok.files import utf8_path

FORMAT = "tivtok.tokens"
StoredDtype = Literal["float32", "float16", "int8", "coded"]
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}  # the others are packed, in version 3
PACKED, RAGGED = "packed", "ragged"
_VERSION_OF = {PACKED: "3", RAGGED: "4"}

FIELDS = {"num_frames": int, "height": int, "width": int, "fps": float, "preset": str, "model_id": str}
_TENSORS_OF_1 = {"tiv": ("F32", "F16"), "tiv_index": ("I64",), "tv": ("F32", "F16")}
# By version of the format.
_TENSORS: dict[str, dict[str, tuple[str, ...]]]
_TENSORS = {"1": _TENSORS_OF_1, "2": _TENSORS_OF_1 | {"chunk_frames": ("I64",)}, "3": {PACKED: ("U8",)}}
_TENSORS["4"] = {RAGGED: ("U8",)}


class TokensError(ValueError):
    """Tokens, or a token file, that cannot be used; the message says what came and what was expected."""


class Counts(NamedTuple):
    """How many tokens each TIV set, and each frame group, has."""

    tiv: tuple[int, ...]
    tv: tuple[int, ...]


class Contents(NamedTuple):
    """Contents of a token file: tensors by name, and the scalar fields of `Tokens`."""

    tensors: dict[str, Tensor]
    fields: dict[str, Any]


def map_file(path: str | os.PathLike[str]) -> Contents:
    """Open a token file without reading its tensors: their bytes come from the file page by page, as they are used.

    Raises:
        OSError: the file cannot be read.
        TokensError: it is not a token file, one of another version, or damaged.
    """
    try:
        with utf8_path(path) as opened, safetensors.safe_open(opened, framework="pt") as file:
            metadata = file.metadata() or {}
            fields = _fields_from(metadata)
            _check_stored(file, _TENSORS[metadata["version"]])
            return Contents({name: file.get_tensor(name) for name in _TENSORS[metadata["version"]]}, fields)
    except safetensors.SafetensorError as error:
        raise TokensError(f"not a token file, or damaged: {error}") from None


def metadata_from(fields: dict[str, Any], packed_as: str | None = None) -> dict[str, str]:
    """The string metadata of a file, from the fields of `Tokens` that are no tensors.

    Args:
        packed_as: the name of the file's only tensor, of one that has one.
    """
    texts = {name: str(fields[name]) for name in FIELDS}
    texts["fps"] = "" if fields["fps"] is None else repr(float(fields["fps"]))
    version = _VERSION_OF[packed_as] if packed_as else "1" if fields["chunk_frames"] is None else "2"
    return {"format": FORMAT, "version": version} | texts


def to_stored(name: str, x: Tensor, dtype: str) -> Tensor:
    """``x`` on the CPU as it is stored.

    Raises:
        TokensError: there is no such dtype, or a value is not finite in it.
    """
    if dtype not in STORED_DTYPES:
        raise TokensError(f"dtype must be one of {tuple(STORED_DTYPES)}, got {dtype!r}")
    stored = x.detach().cpu().to(STORED_DTYPES[dtype]).contiguous()
    check_finite(name, stored, f"as {dtype}")
    return stored


def check_finite(name: str, x: Tensor, where: str) -> None:
    if not x.isfinite().all():
        raise TokensError(f"{name} holds values that are not finite {where}")


def _fields_from(metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise TokensError(f'not a token file: its metadata must say format "{FORMAT}"')
    if metadata.get("version") not in _TENSORS:
        raise TokensError(
            f"version {metadata.get('version')!r} of the format, this program reads {', '.join(_TENSORS)}"
        )
    missing = FIELDS.keys() - metadata.keys()
    if missing:
        raise TokensError(f"its metadata lacks {', '.join(sorted(missing))}")
    fields: dict[str, Any] = {}
    for name, kind in FIELDS.items():
        try:
            fields[name] = None if name == "fps" and not metadata[name] else kind(metadata[name])
        except ValueError:
            raise TokensError(f"its metadata says {name} = {metadata[name][:100]!r}") from None
    return fields


def _check_stored(file: safetensors.safe_open, expected: dict[str, tuple[str, ...]]) -> None:
    names = sorted(file.keys())
    if names != sorted(expected):
        raise TokensError(f"it must hold the tensors {', '.join(expected)}, got {names[:10]}")
    for name, dtypes in expected.items():
        dtype = file.get_slice(name).get_dtype()
        if dtype not in dtypes:
            raise TokensError(f"{name} must be stored as {' or '.join(dtypes)}, got {dtype}")
