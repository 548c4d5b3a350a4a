"""Videos of any length through a TivTok model: frames go in and come out a chunk at a time, as uint8 (f, H, W, 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tivtok.model import TivTok, merge_tiv, share_tiv_sets
from tivtok.tokens import Tokens, TokensError
from tivtok.video import frames_to_video, video_to_frames


@torch.no_grad()
def encode_stream(model: TivTok, chunks: Iterable[Tensor], tiv_sets: int = 1, fps: float | None = None) -> Tokens:
    """The tokens that ``model.encode`` gives for the whole video, holding one chunk of it at a time (Alg. 1).

    Args:
        chunks: uint8 (f, H, W, 3) on the CPU, each of ``model.config.chunk_frames`` frames, the last may be shorter.
        tiv_sets, fps: as in ``TivTok.encode``.

    Returns:
        Tokens on the CPU.

    Raises:
        ValueError: there are no chunks, a chunk before the last is shorter or longer, or ``tiv_sets`` does not fit.
    """
    chunk_frames = model.config.chunk_frames
    tivs: list[Tensor] = []
    tvs: list[Tensor] = []
    num_frames, height, width = 0, 0, 0
    for chunk in chunks:
        if num_frames % chunk_frames or not 1 <= len(chunk) <= chunk_frames:
            raise ValueError(
                f"every chunk but the last must hold {chunk_frames} frames, got one of {len(chunk)} "
                f"after {num_frames} frames"
            )
        video = frames_to_video(chunk.to(_device(model)))[None]
        tiv, tv = model.encode_chunks(video)
        tivs.append(tiv.cpu())
        tvs.append(tv.cpu())
        num_frames += len(chunk)
        height, width = chunk.shape[1:3]
    if not tivs:
        raise ValueError("there are no frames to encode")
    set_of_chunk = share_tiv_sets(len(tivs), tiv_sets)
    tv = torch.cat(tvs, dim=1)
    return Tokens(
        tiv=merge_tiv(torch.cat(tivs, dim=1), set_of_chunk),
        tv=tv,
        tiv_index=set_of_chunk.repeat_interleave(model.config.groups_per_chunk)[: tv.shape[1]],
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        preset=model.config.name,
        model_id=model.model_id,
    )


@torch.no_grad()
def decode_stream(model: TivTok, tokens: Tokens, frames: range | None = None) -> Iterator[Tensor]:
    """The frames of ``tokens`` (or the run ``frames`` of them) as uint8 (f, H, W, 3) on the CPU, a chunk at a time.

    Raises:
        TokensError: the tokens are of several videos, or another model made them.
        ValueError: ``frames`` reaches outside the video.
    """
    if tokens.tiv.shape[0] != 1:
        raise TokensError(f"the tokens must be of one video, got a batch of {tokens.tiv.shape[0]}")
    frames = range(tokens.num_frames) if frames is None else frames
    if frames.step != 1 or not 0 <= frames.start <= frames.stop <= tokens.num_frames:
        raise ValueError(f"frames must be a run within 0..{tokens.num_frames}, got {frames}")
    tokens = tokens.to(_device(model))
    chunk_frames = model.config.chunk_frames
    start = frames.start
    while start < frames.stop:
        stop = min(frames.stop, (start // chunk_frames + 1) * chunk_frames)
        yield video_to_frames(model.decode(tokens, slice(start, stop))[0]).cpu()
        start = stop


def _device(model: TivTok) -> torch.device:
    return next(model.parameters()).device
