"""A training run as a TOML file: strict keys, every default in one place."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tivtok.model.config import TivTokConfig
from tivtok.training.settings import check_types, override, read_toml


@dataclass(frozen=True)
class PerceptualConfig:
    """LPIPS on single frames, the table ``[perceptual]``.

    Attributes:
        net: "vgg" (what the field trains with) or "alex" (smaller).
        weights: file of LPIPS weights for ``net``; by default the one that ``tivtok weights lpips-vgg`` (or lpips-alex)
            has fetched.
        weight: of this term in the loss.
        warmup_steps: the weight rises linearly over these first steps; 10,000 in VFRTok's code (arXiv 2505.12053).
    """

    net: Literal["vgg", "alex"] = "vgg"
    weights: Path | None = None
    weight: float = 1.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.net not in ("vgg", "alex"):
            raise ValueError(f'perceptual.net must be "vgg" or "alex", got {self.net!r}')
        if self.warmup_steps < 0:
            raise ValueError(f"perceptual.warmup_steps must be at least 0, got {self.warmup_steps}")

    def weight_at(self, step: int) -> float:
        """``weight`` in this step."""
        return self.weight * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.weight


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator, the table ``[adversarial]``: heads on features of a frozen DINOv2.

    Attributes:
        dinov2: folder of a ``transformers.Dinov2Model`` (config.json, model.safetensors), DINOv2-S in the paper.
        weight: of the adversarial term once it is balanced against the rest by the gradients at the last layer.
        start: the step from which discriminator and adversarial term run.
        learning_rate: of the heads' AdamW; same schedule and betas as the model's.
        image_size: frames are resized to this square for the features; a multiple of the backbone's patch.
        augment: probability of each of DiffAug's three policies (arXiv 2006.10738).
        cutout: side of DiffAug's hole, as a share of the frame's; 0.2 in VFRTok's code.
        consistency: weight of the mean squared difference between the logits of frames and of the same frames augmented
            once more, by all policies with a hole of `STRONG_CUTOUT` (arXiv 1910.12027); 4 in VFRTok's code.
        lecam: weight of the LeCAM regulariser (arXiv 2104.03310).
        lecam_decay: of its moving averages of the mean logits.
    """

    dinov2: Path
    weight: float = 0.2
    start: int = 30_000
    learning_rate: float = 1e-4
    image_size: int = 224
    augment: float = 0.5
    cutout: float = 0.5
    consistency: float = 0.0
    lecam: float = 1e-3
    lecam_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"adversarial.start must be at least 0, got {self.start}")
        if not 0 <= self.augment <= 1:
            raise ValueError(f"adversarial.augment must be a probability, got {self.augment}")
        if not 0 <= self.cutout <= 1:
            raise ValueError(f"adversarial.cutout must be between 0 and 1, got {self.cutout}")
        if self.consistency < 0:
            raise ValueError(f"adversarial.consistency must be at least 0, got {self.consistency}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        output: folder of the run: checkpoint, logs, resumable state.
        data: what to train on: a folder of videos or of WebDataset tars, or a CSV list (`tivtok.video.sources`).
        model: the tokenizer, from the table ``[model]``: ``preset``, ``size`` and any field of `TivTokConfig`.
        steps: optimizer steps of the whole run.
        batch_size: clips per step over all processes.
        accumulate: in how many parts, one after another, a process's share of the batch goes through the model: less
            memory for the same gradient (SoftVQ's entropy and the adversarial term's balance are each part's own).
        start_from: the ``output`` of another run, whose averaged weights and discriminator this one begins with (the
            long-video stage begins with the first one's), or a checkpoint as `TivTok.from_pretrained` takes it.
        frozen: names of weights that stay as they are, or beginnings of names up to a dot: "encoder" is all of the
            encoder, "decoder.blocks.0" one block.
        held_out: name patterns (fnmatch) of the videos in ``data`` that are never trained on, only measured on.
        excluded: of those in ``data`` that the run leaves alone: neither trained nor measured on, so not chosen on.
        validation: videos to measure on from elsewhere, in any of the forms of ``data``.
        held_out_clips: how many videos are measured on at most, evenly picked.
        chunks: clips are this many chunks long and share the mean of their TIV tokens (paper Alg. 1). Of several
            numbers one is drawn for each step, whose batch has fewer clips the longer they are: ``batch_size`` is that
            of the shortest.
        siblings: the share of steps in which each chunk is decoded through the TIV set of the chunk before it (the
            first through the last's) instead of the mean.
        without_tv: the share of clips that are decoded with the TV tokens of a grey video, so that TIV tokens show by
            themselves what stays.
        nested: the share of steps that decode only the first TIV tokens of a set and TV tokens of a frame group, any
            numbers of them with the same probability; for models with nested tokens, which then serve in any number.
        quantization_noise: the step of coded files that tokens are to stand: they are decoded with uniform noise of
            this width, much like what rounding them to such steps adds (arXiv 1611.01704).
        short_clips: the share of steps whose clips have fewer frame groups, any number with the same probability: for
            chunks that end at a cut or with the video.
        strict: treat a video as unreadable where its decoder has made up for damage, instead of a warning in the log.
        in_memory: decode all videos once and keep them; for data of a few GB.
        workers: processes that read clips ahead, per training process; 0 reads in between the steps.
        short_sides: the videos' short side in pixels once loaded; crops of ``model.native_size`` are cut from a
            random one of these, so larger means closer views. By default that of ``native_size``.
        strides: video frames from one training frame to the next, one picked at random per clip; 0 for stills.
        fps: pick frames at this rate, by time, before ``strides``; each frame by default. 24 in VFRTok's code.
        mix: shares of the clips by what a list says in its column ``dataset``, such as ``[["ucf101", 0.3],
            ["kinetics600", 0.7]]``; the videos of each are then drawn at random. By default each epoch has every video
            once. TivTok's paper trains on both and names no shares.
        augmentation: "flip": centre crops, mirrored or not (the paper's). "strong": also random crops, reversed time,
            contrast, brightness, swapped colours and axes, and mixtures of two clips (for few videos). "collage": also
            moving pieces of others over each clip (for very few, ``in_memory``: a clip is made of 5.5 on average).
        camera: the share of clips, and of the pieces of a collage, that a camera sees which is turned and may zoom,
            turn and pan (`tivtok.training.camera`); not with "flip".
        reconstruction: "l1" (the paper's) or "mse" (maximises PSNR).
        perceptual: LPIPS term, none by default.
        adversarial: discriminator and adversarial term, none by default.
        entropy: weight of SoftVQ's entropy penalty, which keeps the codebook in use (0.01 in arXiv 2412.10958; TivTok's
            paper names none).
        feature_frames: how many frames of a clip, picked at random, go through LPIPS and the discriminator; all by
            default.
        optimizer: "adamw" (the paper's), or "muon" for the matrices inside the blocks with AdamW for the rest.
        learning_rate, muon_learning_rate: peak values; linear warm-up over ``warmup_steps``, then cosine to zero.
        gradient_clip: largest norm of the model's gradient, and of the discriminator's.
        ema: decay of the averaged weights, which are the ones saved and measured.
        precision: "float32", or "bfloat16" for autocast over float32 weights.
        activation_checkpointing: keep the attention's tensors only and compute the rest of each block again in the
            backward pass.
        compile: torch.compile the model.
        max_bad_steps: a step whose loss or gradient is not finite changes nothing; this many in a row end the run.
        log_every, evaluate_every, save_every: in steps.
        trackers: where the log goes beside ``log.jsonl``, by accelerate's names: "tensorboard", "wandb", "trackio", ...
        push_to_hub: the Hugging Face repository, "owner/name", that the last checkpoint is uploaded to.
    """

    output: Path
    data: Path
    model: TivTokConfig
    steps: int
    batch_size: int = 16
    accumulate: int = 1
    start_from: str | Path | None = None
    frozen: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    validation: Path | None = None
    held_out_clips: int = 64
    chunks: int | tuple[int, ...] = 1
    siblings: float = 0.0
    without_tv: float = 0.0
    nested: float = 0.0
    quantization_noise: float = 0.0
    short_clips: float = 0.0
    strict: bool = False
    in_memory: bool = False
    workers: int = 2
    short_sides: tuple[int, ...] = ()
    strides: tuple[int, ...] = (1,)
    fps: float | None = None
    mix: tuple[tuple[str, float], ...] = ()
    augmentation: Literal["flip", "strong", "collage"] = "strong"
    camera: float = 0.0
    reconstruction: Literal["l1", "mse"] = "l1"
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None
    entropy: float = 0.0
    feature_frames: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    muon_learning_rate: float = 0.02
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    ema: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    compile: bool = False
    max_bad_steps: int = 10
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    save_every: int = 500
    trackers: tuple[str, ...] = ("tensorboard",)
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "held_out_clips", "max_bad_steps")
        for name in (*counts, "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.chunk_choices or min(self.chunk_choices) < 1:
            raise ValueError(f"chunks must be at least 1, got {self.chunks}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        for name in ("short_clips", "siblings", "without_tv", "nested", "camera"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.camera and self.augmentation == "flip":
            raise ValueError(f'camera must be 0 with augmentation "flip", got {self.camera}')
        if (self.nested > 0) != self.model.nested:
            raise ValueError(
                f"nested must be above 0 for models with nested tokens, and for them alone, got {self.nested} with "
                f"model.nested {self.model.nested}"
            )
        if not 0 <= self.quantization_noise < math.inf:
            raise ValueError(f"quantization_noise must be a finite width from 0 up, got {self.quantization_noise}")
        if self.quantization_noise and self.model.quantizer == "fsq":
            raise ValueError(
                f"quantization_noise is for tokens that are free values, got {self.quantization_noise} with "
                'model.quantizer "fsq", whose tokens are integer codes'
            )
        if self.entropy and self.model.quantizer != "softvq":
            raise ValueError(
                f'entropy is for model.quantizer "softvq", got {self.entropy} with {self.model.quantizer!r}'
            )
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps must be above 0, got {self.fps}")
        if self.mix and (min(share for _, share in self.mix) < 0 or not sum(share for _, share in self.mix) > 0):
            raise ValueError(f"mix must have shares of 0 or more, and one above, got {self.mix}")
        if self.feature_frames is not None and not 1 <= self.feature_frames <= self.clip_frames:
            raise ValueError(
                f"feature_frames must be between 1 and the clip's {self.clip_frames}, got {self.feature_frames}"
            )
        if any(side % step for side, step in zip(self.model.native_size, self.model.patch[1:], strict=True)):
            raise ValueError(
                f"model.native_size must be a multiple of the patch {self.model.patch[1:]} in training, "
                f"got {self.model.native_size}"
            )
        if not self.short_sides:
            object.__setattr__(self, "short_sides", (min(self.model.native_size),))

    @property
    def chunk_choices(self) -> tuple[int, ...]:
        """The numbers of chunks that a step's clips may have."""
        return (self.chunks,) if isinstance(self.chunks, int) else self.chunks

    @property
    def clip_frames(self) -> int:
        """Video frames of the shortest training clips, but for those that `short_clips` cuts; of held-out ones."""
        return min(self.chunk_choices) * self.model.chunk_frames

    def clips_of_step(self, chunks: int) -> int:
        """Clips over all processes in a step whose clips have so many chunks."""
        return max(1, self.batch_size * min(self.chunk_choices) // chunks)

    @classmethod
    def load(cls, path: str | Path, settings: Sequence[str] = ()) -> TrainConfig:
        """Read a TOML file, as `tivtok.training.settings.read_toml` does.

        Relative paths in it are relative to the working directory.

        Args:
            settings: changes to it, as `tivtok.training.settings.override` takes them.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not TOML, or a key or value does not belong; the message names it.
        """
        try:
            values = read_toml(Path(path))
            override(values, settings)
            return cls._from_dict(values)
        except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        values = _checked(cls, values, {"output", "data", "model", "steps"})
        model = dict(values.pop("model"))
        if "preset" not in model:
            raise ValueError("missing keys: model.preset")
        base = TivTokConfig.preset(model.pop("preset"), model.pop("size", "base"))
        check_types(TivTokConfig, model, "model.")
        values["model"] = TivTokConfig.from_dict(base.to_dict() | model)
        if "perceptual" in values:
            values["perceptual"] = PerceptualConfig(**_checked(PerceptualConfig, values["perceptual"], set()))
        if "adversarial" in values:
            values["adversarial"] = AdversarialConfig(**_checked(AdversarialConfig, values["adversarial"], {"dinov2"}))
        return cls(**values)


_CHOICES = {
    "augmentation": ("flip", "strong", "collage"),
    "reconstruction": ("l1", "mse"),
    "optimizer": ("adamw", "muon"),
    "precision": ("float32", "bfloat16"),
}
_PATHS = {"output", "data", "validation", "weights", "dinov2"}


def _checked(cls: type, values: dict[str, Any], required: set[str]) -> dict[str, Any]:
    """The values with TOML's lists as tuples and paths as `Path`, once their keys are those of ``cls``."""
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
    missing = required - set(values)
    if missing:
        raise ValueError(f"missing keys: {', '.join(sorted(missing))}")
    check_types(cls, values, "" if cls is TrainConfig else f"{cls.__name__.removesuffix('Config').lower()}.")
    return {name: Path(value) if name in _PATHS else _frozen(value) for name, value in values.items()}


def _frozen(value: Any) -> Any:
    """Lists as tuples, those in lists, too."""
    return tuple(_frozen(x) for x in value) if isinstance(value, list) else value
