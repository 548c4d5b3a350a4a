"""``tivtok eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from tivtok.cli.common import (
    CommandError,
    DeviceOption,
    ModelOption,
    SizeOption,
    Source,
    TivSetsOption,
    compare,
    encode_source,
    load_model,
    out,
    parse_tiv_sets,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tivtok.model import TivTok
    from tivtok.tiv_sets import TivSets


def evaluate(
    paths: Annotated[list[Path], typer.Argument(metavar="VIDEO|FOLDER...", help="Videos, or folders of them.")],
    model: ModelOption = "tiny",
    size: SizeOption = "native",
    tiv_sets: TivSetsOption = "1",
    device: DeviceOption = "auto",
) -> None:
    """PSNR and SSIM of reconstructions, and seams: change across chunk borders over change inside chunks.

    Example: tivtok eval clips/ --model runs/mine
    """
    import torch

    from tivtok.metrics import PROTOCOL

    files = _files(paths)
    sets = parse_tiv_sets(tiv_sets)
    tokenizer = load_model(model, device)
    out.print("  PSNR dB    SSIM  seams  in original  frames  tokens  video")
    rows = []
    for file in files:
        scores = _scores(tokenizer, Source(file, size, tokenizer), sets)
        rows.append(scores.means)
        out.print(f"{_columns(scores.means)}  {scores.frames:6}  {scores.tokens:6}  {file}", soft_wrap=True)
    out.print(f"{_columns(torch.stack(rows).nanmean(0))}                  mean of {len(rows)}")
    out.print(f"protocol: {PROTOCOL}; seams: {SEAMS}; mean of the videos' means", soft_wrap=True)
    out.print(
        f"model {tokenizer.config.name}, id {tokenizer.model_id}, {size} size, {tiv_sets} TIV set(s)", soft_wrap=True
    )


def _files(paths: list[Path]) -> list[Path]:
    from tivtok.video import find_videos

    files: list[Path] = []
    for path in paths:
        found = find_videos(path) if path.is_dir() else [path]
        if not found:
            raise CommandError(f"there are no videos in {path}")
        files += found
    return files


SEAMS = "mean |change| from frame to frame across chunk borders over that inside chunks, nan where there is none"


class _Scores(NamedTuple):
    means: Tensor  # (4,): PSNR, SSIM, seams of the reconstruction, seams of the original
    frames: int
    tokens: int


def _scores(tokenizer: TivTok, source: Source, tiv_sets: TivSets) -> _Scores:
    import torch

    from tivtok.metrics import frame_changes, psnr, seams, ssim

    tokens = encode_source(tokenizer, source, tiv_sets)
    psnrs, ssims, changes = [], [], []
    before = None  # the last frames of the chunk before, so that the change between chunks is seen
    for original, reconstruction in compare(tokenizer, tokens, source):
        psnrs.append(psnr(reconstruction, original))
        ssims.append(ssim(reconstruction, original))
        both = torch.stack([reconstruction, original])
        joined = both if before is None else torch.cat([before, both], dim=1)
        changes.append(torch.stack([frame_changes(frames) for frames in joined]))
        before = both[:, -1:]
    borders, insides = zip(*(seams(c, tokenizer.config.chunk_frames) for c in torch.cat(changes, dim=1)), strict=True)
    ratios = torch.tensor(borders) / torch.tensor(insides)
    means = torch.cat([torch.stack([torch.cat(psnrs).mean(), torch.cat(ssims).mean()]), ratios])
    return _Scores(means, tokens.num_frames, tokens.num_tokens)


def _columns(means: Tensor) -> str:
    psnr, ssim, seams, original = means.tolist()
    return f"{psnr:9.2f}  {ssim:.4f}  {seams:5.2f}  {original:11.2f}"
