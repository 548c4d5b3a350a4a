"""Token files: safetensors with three tensors, and everything else as string metadata (version 1).

| tensor | shape | stored as |
|---|---|---|
| tiv | (B, S, N_TIV, D) | F32 or F16 |
| tv | (B, T, N_TV, D) | F32 or F16 |
| tiv_index | (T,) | I64 |

The order of the tensors in the file is free. Nothing in it is executed or unpickled.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

FORMAT = "tivtok.tokens"
FORMAT_VERSION = 1
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}

_FIELDS = {"num_frames": int, "height": int, "width": int, "fps": float, "preset": str, "model_id": str}
_TENSORS = {"tiv": ("F32", "F16"), "tiv_index": ("I64",), "tv": ("F32", "F16")}


class TokensError(ValueError):
    """Tokens, or a token file, that cannot be used; the message says what came and what was expected."""


class Contents(NamedTuple):
    """What a token file holds: tensors by name, and the scalar fields of `Tokens`."""

    tensors: dict[str, Tensor]
    fields: dict[str, Any]


def map_file(path: str | os.PathLike[str]) -> Contents:
    """Open a token file without reading its tensors: their bytes come from the file page by page, as they are used.

    Raises:
        OSError: the file cannot be read.
        TokensError: it is not a token file, one of another version, or damaged.
    """
    with open(path, "rb"):  # the plain OSError, before safetensors wraps it in one of its own
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            fields = _fields_from(file.metadata() or {})
            _check_stored(file)
            return Contents({name: file.get_tensor(name) for name in _TENSORS}, fields)
    except safetensors.SafetensorError as error:
        raise TokensError(f"not a token file, or damaged: {error}") from None


def metadata_from(fields: dict[str, Any]) -> dict[str, str]:
    """The string metadata of a file, from the scalar fields of `Tokens`."""
    texts = {name: str(fields[name]) for name in _FIELDS}
    texts["fps"] = "" if fields["fps"] is None else repr(float(fields["fps"]))
    return {"format": FORMAT, "version": str(FORMAT_VERSION)} | texts


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
    if metadata.get("version") != str(FORMAT_VERSION):
        raise TokensError(f"version {metadata.get('version')!r} of the format, this program reads {FORMAT_VERSION}")
    missing = _FIELDS.keys() - metadata.keys()
    if missing:
        raise TokensError(f"its metadata lacks {', '.join(sorted(missing))}")
    fields: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        try:
            fields[name] = None if name == "fps" and not metadata[name] else kind(metadata[name])
        except ValueError:
            raise TokensError(f"its metadata says {name} = {metadata[name][:100]!r}") from None
    return fields


def _check_stored(file: safetensors.safe_open) -> None:
    names = sorted(file.keys())
    if names != list(_TENSORS):
        raise TokensError(f"it must hold the tensors {', '.join(_TENSORS)}, got {names[:10]}")
    for name, dtypes in _TENSORS.items():
        dtype = file.get_slice(name).get_dtype()
        if dtype not in dtypes:
            raise TokensError(f"{name} must be stored as {' or '.join(dtypes)}, got {dtype}")
