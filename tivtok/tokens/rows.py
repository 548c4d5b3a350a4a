"""Tokens as a row of a table: arrays and plain values by column, for data engines and columnar files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tivtok.model.quantizer import to_codes
from tivtok.tokens.format import FIELDS, Counts, TokensError, to_stored
from tivtok.tokens.tokens import Tokens

_REQUIRED = ("tiv", "tv", "tiv_index", "chunk_frames", *FIELDS)
_COUNTS = ("tiv_counts", "tv_counts")
_OPTIONAL = ("levels", *_COUNTS)
COLUMNS = (*_REQUIRED, *_OPTIONAL)


def to_row(tokens: Tokens, dtype: str = "float16") -> dict[str, Any]:
    """The columns of one video.

    Returns:
        ``tiv`` (S, N_TIV, D) and ``tv`` (T, N_TV, D) of ``dtype``, ``tiv_index`` (T,), ``chunk_frames`` (K,) and
        ``levels`` (L,) int64, and ``tiv_counts`` (S,) and ``tv_counts`` (T,), the last four empty where the tokens have
        none, all numpy; ``num_frames``, ``height``, ``width``, ``fps`` (NaN where the tokens have none), ``preset`` and
        ``model_id``.

    Raises:
        TokensError: the tokens are of several videos, or have values or codes that ``dtype`` cannot hold.
    """
    if tokens.tiv.shape[0] != 1:
        raise TokensError(f"a row holds one video, got tokens of {tokens.tiv.shape[0]}")
    fields = {name: getattr(tokens, name) for name in FIELDS}
    values = {}
    for name, x in (("tiv", tokens.tiv[0]), ("tv", tokens.tv[0])):
        stored = to_stored(name, x, dtype)
        if tokens.levels is not None and not torch.equal(to_codes(stored, tokens.levels), to_codes(x, tokens.levels)):
            raise TokensError(f"{dtype} cannot tell the codes of {name} apart, which have levels {tokens.levels}")
        values[name] = stored.numpy()
    return {
        **values,
        "tiv_index": tokens.tiv_index.cpu().numpy(),
        "chunk_frames": np.array(tokens.chunk_frames or (), dtype=np.int64),
        "levels": np.array(tokens.levels or (), dtype=np.int64),
        **{name: np.array(n, np.int64) for name, n in zip(_COUNTS, tokens.counts or ((), ()), strict=True)},
        **fields,
        "fps": np.nan if tokens.fps is None else tokens.fps,
    }


def empty_row(num_tiv: int, num_tv: int, latent_dim: int, dtype: str = "float16") -> dict[str, Any]:
    """The columns of a video that has no tokens (it could not be read): arrays of the usual rank without entries."""
    return {
        "tiv": np.zeros((0, num_tiv, latent_dim), dtype),
        "tv": np.zeros((0, num_tv, latent_dim), dtype),
        "tiv_index": np.zeros(0, np.int64),
        "chunk_frames": np.zeros(0, np.int64),
        **{name: np.zeros(0, np.int64) for name in _OPTIONAL},
        **{name: "" if kind is str else kind(0) for name, kind in FIELDS.items()},
    }


def from_row(row: Mapping[str, Any]) -> Tokens:
    """The inverse of `to_row`; other columns are ignored.

    ``levels``, ``tiv_counts`` and ``tv_counts`` may be missing: earlier versions wrote none.

    Returns:
        tokens of the dtype that the row has.

    Raises:
        TokensError: a column is missing, or the row holds no tokens that fit one another.
    """
    missing = [name for name in _REQUIRED if name not in row]
    if missing:
        raise TokensError(f"a row of tokens has the columns {', '.join(COLUMNS)}, this one lacks {', '.join(missing)}")
    tiv, tv, index = (torch.from_numpy(np.array(row[name])) for name in ("tiv", "tv", "tiv_index"))
    lengths, levels, *numbers = (tuple(map(int, row.get(name, ()))) or None for name in ("chunk_frames", *_OPTIONAL))
    of_tiv, of_tv = numbers
    counts = None if of_tiv is None or of_tv is None else Counts(of_tiv, of_tv)
    fields = {name: kind(row[name]) for name, kind in FIELDS.items()}
    if np.isnan(fields["fps"]):
        fields["fps"] = None
    return Tokens(tiv[None], tv[None], index, **fields, chunk_frames=lengths, levels=levels, counts=counts)
