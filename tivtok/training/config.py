"""A training run as a TOML file: strict keys, every default in one place."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tivtok.config import TivTokConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        output: folder of the run: checkpoints, log, resumable state.
        data: folder of videos, searched recursively.
        model: the tokenizer, from the table ``[model]``: ``preset``, ``size`` and any field of `TivTokConfig`.
        held_out: file-name patterns (fnmatch) of the videos that are never trained on, only measured on.
        short_sides: the videos' short side in pixels once loaded; crops of ``model.native_size`` are cut from a
            random one of these, so larger means closer views.
        strides: video frames from one training frame to the next, one picked at random per clip.
        reconstruction: "l1" (the paper's) or "mse" (maximises PSNR).
        optimizer: "adamw" (the paper's), or "muon" for the matrices inside the blocks with AdamW for the rest.
        learning_rate, muon_learning_rate: peak values; linear warm-up over ``warmup_steps``, then cosine to zero.
        ema: decay of the averaged weights, which are the ones saved and measured.
        evaluate_every, save_every: in steps.
    """

    output: Path
    data: Path
    model: TivTokConfig
    steps: int
    batch_size: int = 16
    held_out: tuple[str, ...] = ()
    short_sides: tuple[int, ...] = (64,)
    strides: tuple[int, ...] = (1,)
    reconstruction: Literal["l1", "mse"] = "l1"
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    muon_learning_rate: float = 0.02
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    evaluate_every: int = 500
    save_every: int = 500
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.reconstruction not in ("l1", "mse"):
            raise ValueError(f'reconstruction must be "l1" or "mse", got {self.reconstruction!r}')
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f'optimizer must be "adamw" or "muon", got {self.optimizer!r}')

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a TOML file. Relative paths in it are relative to the working directory.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not TOML, or a key or value does not belong; the message names it.
        """
        try:
            values = tomllib.loads(Path(path).read_text())
            return cls._from_dict(values)
        except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        known = {f.name for f in fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
        missing = {"output", "data", "model", "steps"} - set(values)
        if missing:
            raise ValueError(f"missing keys: {', '.join(sorted(missing))}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        model = dict(values.pop("model"))
        base = TivTokConfig.preset(model.pop("preset"), model.pop("size", "base"))
        values["model"] = TivTokConfig.from_dict(base.to_dict() | model)
        return cls(output=Path(values.pop("output")), data=Path(values.pop("data")), **values)
