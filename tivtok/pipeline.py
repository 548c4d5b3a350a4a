"""Encoding and decoding as functions of rows of a table, for engines that spread a table over machines.

    ray.data.read_csv("clips.csv").map_batches(Encoder, fn_constructor_kwargs={"model": "tiny"}, ...)

Both are called with a batch, columns by name, and return one; so they also run in a plain loop. Pickling keeps their
settings only; each copy loads the model at its first call. A row that fails does not fail the batch: its ``error`` says
what happened, and is "" otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from tivtok.budgets import EVERYTHING, Budget, Fitted
from tivtok.chunks.sharing import TivSets
from tivtok.files import is_remote
from tivtok.loading import load_model
from tivtok.streaming import Stream, decode_stream, encode_streams, encode_within
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.tokens.rows import empty_row, from_row, to_row
from tivtok.video.readers import check_reader
from tivtok.video.source import Source
from tivtok.video.sources import VideoRef

Batch = Mapping[str, Sequence[Any]]


@dataclass
class _WithModel:
    model: str = "tiny"
    device: str = "auto"
    precision: str = "auto"
    compile: bool = field(default=False, kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        """Keep the settings only, not the model."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    @property
    def tokenizer(self) -> TivTok:
        """The model, loaded when it is first asked for."""
        if "_tokenizer" not in vars(self):
            self._tokenizer = load_model(self.model, self.device, self.precision, self.compile)
        return self._tokenizer


class Encoded(NamedTuple):
    """Outcome of encoding a video.

    Attributes:
        tokens: float32; None where there are none.
        error: why there are none, or "".
        warning: a line on damage that a decoder has made up for, or "".
    """

    tokens: Tokens | None
    error: str = ""
    warning: str = ""


@dataclass
class Encoder(_WithModel):
    """Rows with the path of a video -> the same rows with its tokens.

    Columns in: ``path``, or an address of fsspec's, whose file is fetched while it is encoded; where they are there,
    ``start`` and ``end`` in seconds (NaN or None: of the whole video), ``offset`` and ``size`` in bytes of the video
    inside ``path`` (an uncompressed tar). Columns out: those, any others as they came, those of
    `tivtok.tokens.rows.to_row`, ``error`` and ``warning`` (damage that a decoder has made up for).

    Attributes:
        model, device, precision, compile: as of `tivtok.loading.load_model`.
        frame_size: "native", "source" or WIDTHxHEIGHT.
        tiv_sets, refine: as in `TivTok.encode`.
        dtype: of the tokens in the row.
        strict: make damage that a decoder has made up for an error.
        threads: of each video's decoder.
        at_once: chunks that go through the model together, of one video or of several, where they have one shape; more
            need more memory, and change tokens by rounding.
        budget: how many tokens to keep, of a model whose tokens are nested.
        reader: as of `tivtok.video.readers.open_video`.

    Raises:
        ValueError: ``at_once`` is below 1, or above it with ``refine`` or ``budget.psnr``, which take one video at a
            time.
    """

    frame_size: str = "native"
    tiv_sets: TivSets = 1
    refine: int = 0
    dtype: Literal["float16", "float32"] = "float16"
    strict: bool = False
    threads: int = 1
    at_once: int = 1
    budget: Budget = EVERYTHING
    reader: str = "pyav"

    def __post_init__(self) -> None:
        if self.at_once < 1 or (self._one_by_one and self.at_once > 1):
            raise ValueError(f"at_once must be at least 1, and 1 with refine or budget.psnr, got {self.at_once}")

    @property
    def _one_by_one(self) -> bool:
        return bool(self.refine) or self.budget.psnr is not None

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """
        Raises:
            KeyError: there is no column ``path``.
        """
        made = [self._row(encoded) for encoded in self.encode(map(_reference, _rows(batch, ("path",))))]
        return dict(batch) | {name: _column([row[name] for row in made]) for name in (made[0] if made else ())}

    def encode(self, refs: Iterable[VideoRef]) -> Iterator[Encoded]:
        """Encode videos, in order.

        Raises:
            CheckpointError, ValueError: as of `load_model`, or the reader cannot be used here.
        """
        check_reader(self.reader, self.strict)
        model, sources = self.tokenizer, deque[Source | None]()

        def opened() -> Iterator[Source | Exception]:
            for ref in refs:
                try:
                    source = self._source(ref)
                except (ValueError, OSError) as error:
                    sources.append(None)
                    yield error
                else:
                    sources.append(source)
                    yield source

        self.budget.check(model.config, self.refine)
        results: Iterator[Tokens | Fitted | Exception]
        if self._one_by_one:
            results = (source if isinstance(source, Exception) else self._alone(source) for source in opened())
        else:
            streams = (s if isinstance(s, Exception) else Stream(s.chunks(), s.fps) for s in opened())
            results = encode_streams(model, streams, self.at_once, self.tiv_sets, self.budget)
        for result in results:
            source = sources.popleft()
            if isinstance(result, Exception):
                yield Encoded(None, str(result))
                continue
            tokens, missed = result if isinstance(result, Fitted) else (result, 0)
            warnings = [source.damage() if source else "", self.budget.says(missed, source.path if source else None)]
            yield Encoded(tokens, warning="; ".join(filter(None, warnings)))

    def _source(self, ref: VideoRef) -> Source:
        config = self.tokenizer.config
        return Source(
            *(ref, config.chunk_frames, self.frame_size, config.native_size),
            strict=self.strict,
            threads=self.threads,
            reader=self.reader,
        )

    def _alone(self, source: Source) -> Fitted | Exception:
        try:
            return encode_within(self.tokenizer, source.chunks(), self.budget, self.tiv_sets, source.fps, self.refine)
        except (ValueError, OSError) as error:
            return error

    def _row(self, encoded: Encoded) -> dict[str, Any]:
        config = self.tokenizer.config
        said = {"error": encoded.error, "warning": encoded.warning}
        if encoded.tokens is None:
            return empty_row(config.num_tiv, config.num_tv, config.latent_dim, self.dtype) | said
        try:
            return to_row(encoded.tokens, self.dtype) | said
        except ValueError as error:  # values that the dtype cannot hold
            return self._row(Encoded(None, str(error)))


@dataclass
class Decoder(_WithModel):
    """Rows with tokens, as `Encoder` makes them -> the same rows with ``frames``, uint8 (F, H, W, 3), and ``error``.

    A row that already has an ``error`` keeps it and gets no frames.

    Attributes:
        model, device, precision, compile: as of `tivtok.loading.load_model`.
    """

    def __call__(self, batch: Batch) -> dict[str, Any]:
        made = [self._row(row) for row in _rows(batch, ("tiv", "tv"))]
        return dict(batch) | {name: _column([row[name] for row in made]) for name in (made[0] if made else ())}

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        nothing = np.zeros((0, 0, 0, 3), np.uint8)
        if row.get("error"):
            return {"frames": nothing, "error": row["error"]}
        try:
            frames = torch.cat(list(decode_stream(self.tokenizer, from_row(row)))).numpy()
        except ValueError as error:
            return {"frames": nothing, "error": str(error)}
        return {"frames": frames, "error": ""}


def _rows(batch: Batch, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for name in needed:
        if name not in batch:
            raise KeyError(f"a batch needs the columns {', '.join(needed)}, got {', '.join(batch)}")
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _reference(row: dict[str, Any]) -> VideoRef:
    address = str(row["path"]) if is_remote(str(row["path"])) else ""
    path = Path(str(row["path"]))
    start, end, offset, size = (_number(row.get(name)) for name in ("start", "end", "offset", "size"))
    member = None if offset is None or size is None else (int(offset), int(size))
    return VideoRef(path.name, path, start or 0.0, end, member, address=address)


def _number(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _column(values: list[Any]) -> np.ndarray:
    """An array per row in a column of objects, anything else as numpy has it."""
    if not isinstance(values[0], np.ndarray):
        return np.array(values)
    column = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        column[place] = value
    return column
