"""Videos of any length through a TivTok model in constant memory: frames go in and come out as uint8 (f, H, W, 3)."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tivtok.budgets import EVERYTHING, Budget, Fitted, fit
from tivtok.chunks.sharing import TivSets
from tivtok.model.config import TivTokConfig
from tivtok.refinement import OnStep, check_refinable
from tivtok.refinement import refine as improve
from tivtok.tokenizer import Encoding, TivTok
from tivtok.tokens import TokenCollector, Tokens, TokensError
from tivtok.tokens.calibration import Calibration
from tivtok.tokens.format import StoredDtype, check_finite
from tivtok.tokens.writer import TokenWriter
from tivtok.video import video_to_frames
from tivtok.video.ahead import on_device

KEPT_SETS = 8  # TIV sets whose keys and values a decoder holds on to


class Stream(NamedTuple):
    """A video to encode.

    Attributes:
        chunks: as in `encode_to_file`.
        fps: as in `TivTok.encode`.
    """

    chunks: Iterable[Tensor]
    fps: float | None = None


# A chunk of the video of an encoding; or the video's end, and in the place of it an error.
_Piece = tuple[Encoding[Tokens], Tensor | Exception | None]


def encode_stream(
    model: TivTok,
    chunks: Iterable[Tensor],
    tiv_sets: TivSets = 1,
    fps: float | None = None,
    refine: int = 0,
    on_step: OnStep = lambda done, total: None,
) -> Tokens:
    """Encode a whole video as ``model.encode`` does, with one chunk of it in memory at a time (Alg. 1).

    Args, Raises: as `encode_to_file`.

    Returns:
        float32 Tokens mapped from a temporary file, which goes when they do, so that they take no memory.
    """
    return encode_within(model, chunks, EVERYTHING, tiv_sets, fps, refine, on_step).tokens


def encode_within(
    model: TivTok,
    chunks: Iterable[Tensor],
    budget: Budget,
    tiv_sets: TivSets = 1,
    fps: float | None = None,
    refine: int = 0,
    on_step: OnStep = lambda done, total: None,
) -> Fitted:
    """`encode_stream` within a budget: its tokens, and how many frame groups stay below ``budget.psnr``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.tivtok"
        missed = encode_to_file(model, chunks, path, tiv_sets, fps, "float32", refine, on_step, budget=budget)
        return Fitted(Tokens.open(path), missed)


@torch.no_grad()
def encode_to_file(
    model: TivTok,
    chunks: Iterable[Tensor],
    path: str | os.PathLike[str],
    tiv_sets: TivSets = 1,
    fps: float | None = None,
    dtype: StoredDtype = "float32",
    refine: int = 0,
    on_step: OnStep = lambda done, total: None,
    calibration: Calibration | None = None,
    budget: Budget = EVERYTHING,
) -> int:
    """Encode a video chunk by chunk, appending to a token file as it goes (see `TokenWriter`).

    Refining, and choosing tokens for a quality, reads the frames many times, so they are kept in an unnamed file in the
    same folder until it is done.

    Args:
        chunks: uint8 (f, H, W, 3) on the CPU, each of ``model.config.chunk_frames`` frames, the last may be shorter.
        tiv_sets: as in ``TivTok.encode``.
        fps: as in ``TivTok.encode``.
        refine: as in ``TivTok.encode``.
        dtype: as in ``Tokens.save``.
        calibration: as in ``Tokens.save``.
        on_step: as in `tivtok.refinement.refine`.
        budget: how many tokens to keep.

    Returns:
        how many frame groups stay below ``budget.psnr`` with all of their tokens; 0 where it says none.

    Raises:
        ValueError: there are no chunks, a chunk before the last is shorter or longer, ``tiv_sets`` does not fit, or the
            model's tokens cannot be refined or chosen so.
        OSError, TokensError: the file cannot be written, or not with these tokens.
    """
    budget.check(model.config, refine)
    if refine:
        check_refinable(model.config, refine)
    if refine or budget.psnr is not None:
        with tempfile.TemporaryFile(dir=Path(path).parent) as shelf:
            numbers = replace(budget, psnr=None)
            tokens, missed = encode_within(model, _kept(chunks, shelf), numbers, tiv_sets, fps)
            shape = (tokens.num_frames, tokens.height, tokens.width, 3)
            frames = torch.from_numpy(np.memmap(shelf, np.uint8, "c", shape=shape)).permute(3, 0, 1, 2)[None]
            if budget.psnr is not None:
                tokens, missed = fit(model, tokens, frames, budget.psnr)
            if refine:
                tokens = improve(model, tokens, frames, refine, on_step)
            tokens.save(path, dtype, calibration)
        return missed
    with TokenWriter.create(path, dtype, calibration, model.model_id, model.config.levels) as out:
        model.encode_into(out, _videos(model, chunks), tiv_sets, fps, budget=budget)
    return 0


@torch.no_grad()
def encode_streams(
    model: TivTok,
    streams: Iterable[Stream | Exception],
    at_once: int = 1,
    tiv_sets: TivSets = 1,
    budget: Budget = EVERYTHING,
) -> Iterator[Tokens | Exception]:
    """The tokens of many videos, in order, float32 on the CPU; chunks of one shape go through the model together.

    Videos are read one after another, so that of each no more than ``at_once`` chunks are held. In a batch a chunk's
    sums are rounded otherwise than alone: tokens agree to rounding of the dtype that the model computes in.

    Args:
        streams: the videos, and in the place of one that could not be opened the error, which is passed on.
        at_once: chunks in a batch, of one video or of several.
        tiv_sets: as in ``TivTok.encode``.
        budget: as in ``TivTok.encode_into``.

    Returns:
        for each video its tokens, or the ValueError or OSError of reading it, or of fewer chunks than ``tiv_sets``.
    """
    batch: list[_Piece] = []
    for piece in _pieces(model, streams, tiv_sets, budget):
        batch.append(piece)
        if sum(isinstance(what, Tensor) for _, what in batch) == at_once:
            yield from _encoded(model, batch)
            batch = []
    yield from _encoded(model, batch)


@torch.no_grad()
def decode_stream(model: TivTok, tokens: Tokens, frames: Sequence[int] | None = None) -> Iterator[Tensor]:
    """Decode frames to uint8 (f, H, W, 3) on the CPU, in runs that lie within one chunk and use one TIV set.

    Runs also end where the number of TV tokens changes.

    Reads and computes only what these frames need of ``tokens`` (mapped from a file by ``Tokens.open``, say): the keys
    and values of a TIV set once, unless `KEPT_SETS` or more others come in between, then each frame group in its run.

    Args:
        frames: the numbers of the frames wanted, in any order; all of them by default.

    Raises:
        TokensError: the tokens are of several videos, another model made them, or they are damaged.
        IndexError: a frame is not there.
    """
    if tokens.tiv.shape[0] != 1:
        raise TokensError(f"the tokens must be of one video, got a batch of {tokens.tiv.shape[0]}")
    model.check_ours(tokens)

    @lru_cache(maxsize=KEPT_SETS)
    def prepared(tiv_set: int) -> list[tuple[Tensor, ...]]:
        tiv = tokens.tiv[:, tiv_set : tiv_set + 1][:, :, : tokens.counts.tiv[tiv_set] if tokens.counts else None]
        check_finite("tiv", tiv, f"in set {tiv_set}")
        return model.prepare(tiv)

    per_group = model.config.frames_per_group
    for tiv_set, run in _runs(model.config, tokens, range(tokens.num_frames) if frames is None else frames):
        groups, where = (run // per_group).unique(return_inverse=True)
        tv = tokens.tv[:, groups.to(tokens.tv.device)]
        tv = tv[:, :, : tokens.counts.tv[int(groups[0])] if tokens.counts else None]
        check_finite("tv", tv, f"in frame groups {groups[0]} to {groups[-1]}")
        video = model.decode_groups(prepared(tiv_set), tv, [len(groups)], tokens.height, tokens.width)[0]
        yield video_to_frames(video[:, (where * per_group + run % per_group).to(video.device)]).cpu()


def _pieces(
    model: TivTok, streams: Iterable[Stream | Exception], tiv_sets: TivSets, budget: Budget
) -> Iterator[_Piece]:
    """The chunks of all videos, each with the encoding it belongs to, and after those of a video None or its error."""
    for stream in streams:
        opened = stream if isinstance(stream, Stream) else Stream(())
        encoding = Encoding(model, TokenCollector(), tiv_sets, opened.fps, budget)
        end = stream if isinstance(stream, Exception) else None
        try:
            if end is None:
                for chunk in encoding.cut(_videos(model, opened.chunks)):
                    yield encoding, chunk
        except (ValueError, OSError) as error:
            end = error
        yield encoding, end


def _encoded(model: TivTok, batch: Sequence[_Piece]) -> Iterator[Tokens | Exception]:
    """Encode a batch of `_pieces`; what has become of the videos that end in it."""
    tokens = iter(model.encode_batch([what for _, what in batch if isinstance(what, Tensor)]))
    for encoding, what in batch:
        if isinstance(what, Tensor):
            tiv, tv = (x.cpu().float() for x in next(tokens))
            encoding.add(what, tiv, tv)
        elif what is None:
            try:
                yield encoding.close()
            except ValueError as error:
                yield error
        else:
            yield what


def _videos(model: TivTok, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """uint8 (f, H, W, 3) -> uint8 (1, 3, f, H, W) on the model's device."""
    device = next(model.parameters()).device
    return (chunk.permute(3, 0, 1, 2)[None] for chunk in on_device(_checked(chunks, model.config.chunk_frames), device))


def _kept(chunks: Iterable[Tensor], shelf: IO[bytes]) -> Iterator[Tensor]:
    """Write the bytes of each chunk to ``shelf`` and pass it on."""
    for chunk in chunks:
        shelf.write(chunk.contiguous().numpy().data)
        yield chunk
    shelf.flush()


def _checked(chunks: Iterable[Tensor], chunk_frames: int) -> Iterator[Tensor]:
    num_frames = 0
    for chunk in chunks:
        if num_frames % chunk_frames or not 1 <= len(chunk) <= chunk_frames:
            raise ValueError(
                f"every chunk but the last must hold {chunk_frames} frames, got one of {len(chunk)} "
                f"after {num_frames} frames"
            )
        num_frames += len(chunk)
        yield chunk
    if not num_frames:
        raise ValueError("there are no frames to encode")


def _runs(config: TivTokConfig, tokens: Tokens, frames: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """(TIV set, frame numbers): consecutive entries of ``frames`` of one chunk, one set and one number of TV tokens, at
    most a chunk of them."""
    chunk_ends = None if tokens.chunk_frames is None else list(accumulate(tokens.chunk_frames))
    run: list[int] = []
    last = (-1, -1, -1)
    for frame in frames:
        if not 0 <= frame < tokens.num_frames:
            raise IndexError(f"frames must be within 0..{tokens.num_frames - 1}, got {frame}")
        group = torch.tensor([frame // config.frames_per_group])
        chunk = frame // config.chunk_frames if chunk_ends is None else bisect_right(chunk_ends, frame)
        here = (int(tokens.sets_of(group)), chunk, tokens.counts.tv[int(group)] if tokens.counts else 0)
        if run and (here != last or len(run) == config.chunk_frames):
            yield last[0], torch.tensor(run)
            run = []
        run.append(frame)
        last = here
    if run:
        yield last[0], torch.tensor(run)
