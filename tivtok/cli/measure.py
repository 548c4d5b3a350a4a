"""``tivtok eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)

if TYPE_CHECKING:
    from torch import Tensor

    from tivtok.model import TivTok


def evaluate(
    paths: Annotated[list[Path], typer.Argument(metavar="VIDEO|FOLDER...", help="Videos, or folders of them.")],
    model: ModelOption = "tiny",
    size: SizeOption = "native",
    tiv_sets: TivSetsOption = 1,
    device: DeviceOption = "auto",
) -> None:
    """PSNR and SSIM of reconstructions.

    Example: tivtok eval clips/ --model runs/mine
    """
    from tivtok.metrics import PROTOCOL

    files = _files(paths)
    tokenizer = load_model(model, device)
    out.print("  PSNR dB    SSIM  frames  tokens  video")
    means = []
    for file in files:
        psnr, ssim, num_tokens = _scores(tokenizer, Source(file, size, tokenizer), tiv_sets)
        means.append((psnr.mean(), ssim.mean()))
        out.print(f"{psnr.mean():9.2f}  {ssim.mean():.4f}  {len(psnr):6}  {num_tokens:6}  {file}", soft_wrap=True)
    psnr, ssim = (sum(column) / len(means) for column in zip(*means, strict=True))
    out.print(f"{psnr:9.2f}  {ssim:.4f}                  mean of {len(means)}")
    out.print(f"protocol: {PROTOCOL}; mean of the videos' means", soft_wrap=True)
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


def _scores(tokenizer: TivTok, source: Source, tiv_sets: int) -> tuple[Tensor, Tensor, int]:
    """Per-frame PSNR (F,) and SSIM (F,), and the number of tokens."""
    import torch

    from tivtok.metrics import psnr, ssim

    tokens = encode_source(tokenizer, source, tiv_sets)
    scores = [(psnr(b, a), ssim(b, a)) for a, b in compare(tokenizer, tokens, source)]
    psnrs, ssims = (torch.cat(column) for column in zip(*scores, strict=True))
    return psnrs, ssims, tokens.num_tokens
