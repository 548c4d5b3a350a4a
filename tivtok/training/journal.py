"""Logging of a run: a progress bar, a JSON log, and accelerate's trackers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from tivtok.files import printable, replacing
from tivtok.video.find import LeftOut, summary

LOG_FILE = "log.jsonl"
LEFT_OUT_FILE = "left_out.json"
TENSORBOARD_FOLDER = "tensorboard"


class Journal:
    """Keeps records of a run in its folder, as a context manager.

    Args:
        folder: of the run. What earlier attempts logged after ``first_step`` is dropped, since those steps run again.
        first_step, steps: how many steps are done, and how many there are.
        writing: False on all processes but the main one, which write nothing.
        trackers: get the same records; TensorBoard gets pictures, too.
    """

    def __init__(
        self, folder: Path, first_step: int, steps: int, writing: bool, trackers: Sequence[GeneralTracker] = ()
    ) -> None:
        self.writing = writing
        self._folder = folder
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self._progress = Progress(*columns, TimeRemainingColumn(), disable=not writing)
        self._task = self._progress.add_task("train", total=steps, completed=first_step)
        if writing:
            path = folder / LOG_FILE
            _truncate(path, first_step)
            self._log = path.open("a")
        self._trackers = trackers if writing else ()

    def __enter__(self) -> Journal:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self.writing:
            self._log.close()
        for tracker in self._trackers:
            tracker.finish()

    def list_left_out(self, left_out: Sequence[LeftOut]) -> None:
        """Say in short which data are not used and why; the full list goes into a file."""
        if self.writing:
            for line in summary(left_out):
                self._print(line)
            listing = [{"path": str(path), "reason": reason} for path, reason in left_out]
            with replacing(self._folder / LEFT_OUT_FILE) as temporary:
                temporary.write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")

    def advance(self, description: str) -> None:
        """Count one more step."""
        self._progress.update(self._task, advance=1, description=description)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Log scalars after ``step`` steps."""
        if self.writing:
            line = json.dumps({"step": step} | {name: float(f"{value:.6g}") for name, value in values.items()})
            self._log.write(line + "\n")
            self._log.flush()
            for tracker in self._trackers:
                tracker.log(values, step)
            self._print(line)

    def show(self, step: int, clips: list[Tensor]) -> None:
        """Log four frames of each clip, uint8 (F, H, W, 3), one clip below the other."""
        rows = [torch.cat([clip[len(clip) * i // 4] for i in range(4)], dim=1) for clip in clips]
        for tracker in self._trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"held_out": torch.cat(rows)[None].numpy()}, step, dataformats="NHWC")

    def _print(self, line: str) -> None:
        self._progress.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def check_trackers(names: Sequence[str]) -> list[str]:
    """The names of trackers, if there are such and their packages are installed: accelerate would leave them out.

    Raises:
        ValueError: one of them cannot be used.
    """
    known, here = sorted(map(str, LOGGER_TYPE_TO_CLASS)), {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ValueError(f'trackers must be of {", ".join(known)}, got "{name}"')
        if name not in here:
            raise ValueError(f'the tracker "{name}" needs its package: pip install {name}')
    return list(names)


def begin_tracking(accelerator: Accelerator, project: str, first_step: int) -> None:
    """Start the trackers of a run that goes on after ``first_step`` steps, under the name ``project``."""
    accelerator.init_trackers(project, init_kwargs={"tensorboard": {"purge_step": first_step + 1}})


def read_log(folder: Path) -> list[dict[str, float]]:
    """The records of a run, in order."""
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def _truncate(path: Path, last_step: int) -> None:
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= last_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))
