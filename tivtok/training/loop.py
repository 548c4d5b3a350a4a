"""The training loop: sample, step, measure, save; resumable at every save."""

from __future__ import annotations

import gc
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, distributed

from tivtok.checkpoints import (
    CheckpointError,
    bundled_checkpoints,
    find_checkpoint,
    load_checkpoint,
    push_checkpoint,
    save_checkpoint,
)
from tivtok.identity import new_model_id
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.training.config import TrainConfig
from tivtok.training.data import training_batches
from tivtok.training.evaluation import Evaluation
from tivtok.training.journal import TENSORBOARD_FOLDER, Journal, begin_tracking, check_trackers
from tivtok.training.split import shared_sources
from tivtok.training.state import load_state, part, save_state
from tivtok.training.trainer import Trainer

STATE_FILE = "state.safetensors"
CHECKPOINT_FOLDER = "checkpoint"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


class TrainingStopped(RuntimeError):
    """Training was stopped by SIGTERM, and the state is saved."""


def train(config: TrainConfig, build: Callable[[TivTokConfig], TivTok] = TivTok) -> Path:
    """Train a tokenizer, or resume the run in ``config.output`` if one was interrupted there.

    The same call trains alone or, when started by ``accelerate launch`` or ``torchrun``, as one of several processes.

    Args:
        build: makes the model, with random weights.

    Returns:
        The folder of the final checkpoint, with the averaged weights.

    Raises:
        ValueError: the data, the state found or the processes do not fit the config, or weights or the package of a
            tracker are missing.
        CheckpointError: the last checkpoint is there, but could not be uploaded.
        TrainingError: too many steps in a row had a loss or gradient that is not finite.
        TrainingStopped: one of the processes got SIGTERM.
    """
    # Precision is the config's; "no" also overrides what accelerate's own configuration might say.
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        log_with=check_trackers(config.trackers),
        project_config=ProjectConfiguration(str(config.output), str(config.output / TENSORBOARD_FOLDER)),
    )
    config.output.mkdir(parents=True, exist_ok=True)
    training, held_out, left_out = shared_sources(config, accelerator)
    trainer = Trainer(config, accelerator, build)
    first_step = _restore(trainer, config)
    batches = training_batches(training, config, first_step, accelerator.process_index, accelerator.num_processes)
    evaluation = Evaluation(trainer, held_out)

    means, bad_in_a_row, started = _Means(), 0, time.monotonic()
    main = accelerator.is_main_process
    begin_tracking(accelerator, config.output.resolve().name, first_step)
    trackers = accelerator.trackers
    with Journal(config.output, first_step, config.steps, main, trackers) as journal, _sigterm_as_trigger(accelerator):
        journal.list_left_out(left_out)
        for done, video in enumerate(batches, first_step + 1):
            stats = trainer.step(video.to(accelerator.device, non_blocking=True), done - 1)
            bad_in_a_row = 0 if stats else bad_in_a_row + 1
            if bad_in_a_row == config.max_bad_steps:
                raise TrainingError(
                    f"the loss or its gradient was not finite {bad_in_a_row} steps in a row, up to step {done}; "
                    f"the state saved last is in {config.output}"
                )
            means.add(stats or {})
            journal.advance(f"loss {stats['reconstruction']:.4f}" if stats else "bad step")
            last = done == config.steps
            if last or done % config.evaluate_every == 0 or done % config.log_every == 0:
                record = means.take() | {"bad_steps": trainer.bad_steps, "seconds": time.monotonic() - started}
                if last or done % config.evaluate_every == 0:
                    record["held_out_psnr"] = evaluation.psnr()
                    journal.show(done, evaluation.shown)
                journal.record(done, record)
            stopping = accelerator.check_trigger()  # on any process, so that all of them save together
            if last or stopping or done % config.save_every == 0:
                _save(trainer, config, done)
            if stopping and not last:
                raise TrainingStopped(f"SIGTERM after step {done}: the state is saved, the same command goes on")
    accelerator.wait_for_everyone()
    if config.push_to_hub is not None and main:
        push_checkpoint(config.output / CHECKPOINT_FOLDER, config.push_to_hub)
    return config.output / CHECKPOINT_FOLDER


def leave_processes() -> None:
    """End the group that the processes of a run make up, if there is one, before the interpreter ends.

    Its threads would go on, and can abort a process whose interpreter has gone: a launcher calls that a failed run.
    """
    gc.collect()  # a spread model is in cycles of references, and holds the group
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _sigterm_as_trigger(accelerator: Accelerator) -> Iterator[None]:
    """Let SIGTERM, which clusters send before they take a machine back, set accelerate's trigger."""
    previous = signal.signal(signal.SIGTERM, lambda *_: accelerator.set_trigger())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _restore(trainer: Trainer, config: TrainConfig) -> int:
    """Load the state of this run, or else of the one to start from; returns the step to go on from."""
    path = config.output / STATE_FILE
    if path.exists():
        tensors, counts = load_state(path)
        trainer.restore(tensors)
        trainer.bad_steps = counts["bad_steps"]
        return counts["step"]
    if config.start_from is not None:
        trainer.begin_from(_starting_point(config.start_from))
    return 0


def _starting_point(start_from: str | Path) -> dict[str, Tensor]:
    """The state of another run, or as much of one as there is in a checkpoint: averaged weights."""
    output = Path(start_from)
    if (output / STATE_FILE).exists():
        return load_state(output / STATE_FILE)[0]
    inside = output / CHECKPOINT_FOLDER
    try:
        if not output.exists() and str(start_from) not in bundled_checkpoints():
            raise CheckpointError(f"there is no {start_from}")  # nothing is downloaded for a run
        weights = load_checkpoint(find_checkpoint(inside if inside.is_dir() else start_from)).weights
    except CheckpointError as error:
        raise ValueError(f"start_from must be the output of a run or a checkpoint: {error}") from None
    return {f"average.{name}": x for name, x in weights.items()}


def _save(trainer: Trainer, config: TrainConfig, step: int) -> None:
    tensors = trainer.state()
    if trainer.accelerator.is_main_process:
        save_state(config.output / STATE_FILE, tensors, {"step": step, "bad_steps": trainer.bad_steps})
        average = part(tensors, "average.")
        model_id = new_model_id(config.model, average)
        save_checkpoint(config.output / CHECKPOINT_FOLDER, config.model, average, model_id)


class _Means:
    """Means of logged values, each over the steps that logged it."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, stats: dict[str, float]) -> None:
        for name, value in stats.items():
            self._values[name].append(value)

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values.clear()
        return means
