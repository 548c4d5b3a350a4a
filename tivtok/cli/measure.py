"""``tivtok eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

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
    table = Table("video", "frames", "tokens", "PSNR", "SSIM", box=None, pad_edge=False)
    means = []
    for file in files:
        source = Source(file, size, tokenizer)
        psnr, ssim, num_tokens = _scores(tokenizer, source, tiv_sets)
        means.append((psnr.mean(), ssim.mean()))
        table.add_row(Text(str(file)), str(len(psnr)), str(num_tokens), f"{means[-1][0]:.2f} dB", f"{means[-1][1]:.4f}")
    psnr, ssim = (sum(column) / len(means) for column in zip(*means, strict=True))
    table.add_row(f"mean of {len(means)}", "", "", f"{psnr:.2f} dB", f"{ssim:.4f}", style="bold")
    out.print(table)
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
