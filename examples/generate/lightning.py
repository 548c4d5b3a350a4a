"""The generator on tokens of real videos, by the recipe of the paper's: for machines with GPUs.

tivtok list ucf101 UCF-101/ trainlist01.txt ucf101.csv
tivtok encode-dir ucf101.csv tokens/ --model CHECKPOINT --format parquet
tivtok stats UCF-101/ --model CHECKPOINT
python -m examples.generate.lightning tokens/ runs/ucf101 --model CHECKPOINT --device cuda

It trains on the tokens of the first chunk of each video, of the class in the list's column ``label``, and goes on where
it was stopped; then it draws ``--draw`` videos of each class as token files, which `tivtok decode` shows.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from examples.generate.flow import Flow, Sampling
from examples.generate.training import fit
from examples.generate.ways import WAYS, Videos, drawn_tokens
from tivtok import TivTok, TivTokConfig
from tivtok.tokens import LatentStats
from tivtok.tokens.dataset import TokenDataset


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how.

    Attributes:
        width, layers, heads: of the transformer.
        steps, batch: of training.
        learning_rate: of AdamW, constant.
        dropout: the share of the labels that are left out.
        sampling: how videos are drawn.
    """

    width: int
    layers: int
    heads: int
    steps: int
    batch: int
    learning_rate: float
    dropout: float
    sampling: Sampling
    seed: int = 0


# The paper's generator (arXiv 2606.17590), a LightningDiT: these sizes, 100,000 steps of 512 videos, AdamW at a
# constant 1e-4, 50 Euler steps, guidance in an interval from 0.1, shift 2. Our reading: what 0.1 and 2 count. Ours: the
# scale of the guidance, 4, and the share of labels left out, a tenth, which we do not know; DiT's blocks, and attention
# by scope.
RECIPES = {
    "paper": Recipe(1152, 28, 16, 100_000, 512, 1e-4, 0.1, Sampling(50, 4.0, 0.1, 2.0)),
    "toy": Recipe(32, 2, 2, 60, 16, 3e-3, 0.1, Sampling(10, 2.0, 0.1, 2.0)),
}


def load(dataset: TokenDataset, config: TivTokConfig, stats: LatentStats) -> tuple[Videos, list[str]]:
    """The first chunk of each video that has a whole one, and the classes: 0.1 MB of memory each with T128.

    Raises:
        SystemExit: the list that was encoded has no column ``label``, or no video is long enough.
    """
    tivs, tvs, names = [], [], []
    for record, tokens in zip(dataset.videos, dataset, strict=True):
        if "label" not in record:
            raise SystemExit(f"{dataset.folder} has no labels: encode a list with a column label (`tivtok list`)")
        if tokens.tv.shape[1] >= config.groups_per_chunk:
            normal = tokens.to(dtype=torch.float32).normalize(stats)
            tivs.append(normal.tiv[0, tokens.tiv_index[:1]])
            tvs.append(normal.tv[0, : config.groups_per_chunk])
            names.append(record["label"])
    if not names:
        raise SystemExit(f"{dataset.folder} has no video of {config.chunk_frames} frames")
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    return Videos(torch.stack(tivs), torch.stack(tvs), labels), classes


def train(videos: Videos, classes: int, config: TivTokConfig, recipe: Recipe, folder: Path, device: str) -> Flow:
    torch.manual_seed(recipe.seed)
    flow = Flow(config, classes, recipe.width, recipe.layers, recipe.heads).to(device)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        chosen = torch.from_numpy(rng.integers(len(videos.labels), size=recipe.batch))
        batch = Videos(*(x[chosen].to(device) for x in videos))
        return WAYS["split"].loss(flow, config, batch, generator, recipe.dropout)

    optimizer = AdamW(flow.parameters(), recipe.learning_rate)
    fit("flow", flow, loss_at, recipe.steps, [optimizer], lambda step: 1.0, folder)
    return flow


@torch.no_grad()
def write_videos(
    flow: Flow, config: TivTokConfig, stats: LatentStats, classes: list[str], recipe: Recipe, each: int, folder: Path
) -> None:
    """``each`` token files for each class, of a chunk at 24 frames per second."""
    device = flow.unlabelled.device
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(classes):
        generator = torch.Generator().manual_seed(recipe.seed + number)
        labels = torch.full((each,), number, device=device)
        drawn = WAYS["split"].draw(flow, config, labels, config.groups_per_chunk, recipe.sampling, generator)
        for video, (tiv, tv) in enumerate(zip(*(x.cpu().split(1) for x in drawn), strict=True)):
            tokens = drawn_tokens(config, stats, tiv, tv, fps=24.0)
            tokens.save(folder / f"{name}-{video:03}.tivtok", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path, help="made by encode-dir of a list with labels")
    parser.add_argument("folder", type=Path, help="keeps the state of the run; token files are written into it")
    parser.add_argument("--model", default="tiny", help="what made the tokens, with `tivtok stats`")
    parser.add_argument("--recipe", choices=list(RECIPES), default="paper")
    parser.add_argument("--draw", type=int, default=1, help="videos of each class")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    recipe, folder = RECIPES[chosen.recipe], chosen.folder
    model, stats = TivTok.from_pretrained(chosen.model), LatentStats.from_pretrained(chosen.model)
    videos, classes = load(TokenDataset(chosen.tokens), model.config, stats)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
    flow = train(videos, len(classes), model.config, recipe, folder, chosen.device)
    write_videos(flow, model.config, stats, classes, recipe, chosen.draw, folder / "drawn")
    print(f"lightning: wrote {chosen.draw * len(classes)} token files into {folder / 'drawn'}")


if __name__ == "__main__":
    main()
