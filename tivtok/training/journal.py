"""What a run says about itself: a progress bar, a JSON log, and TensorBoard's files."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from tivtok.files import replacing

LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Journal:
    """Keeps records of a run in its folder, as a context manager.

    Args:
        folder: of the run. What earlier attempts logged after ``first_step`` is dropped: it is going to happen again.
        first_step, steps: how many steps are done, and how many there are.
        writing: False on all processes but the main one: they say nothing.
    """

    def __init__(self, folder: Path, first_step: int, steps: int, writing: bool) -> None:
        self.writing = writing
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self._progress = Progress(*columns, TimeRemainingColumn(), disable=not writing)
        self._task = self._progress.add_task("train", total=steps, completed=first_step)
        if writing:
            path = folder / LOG_FILE
            _truncate(path, first_step)
            self._log = path.open("a")
            self._board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_step + 1)

    def __enter__(self) -> Journal:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self.writing:
            self._log.close()
            self._board.close()

    def advance(self, description: str) -> None:
        """One step is done."""
        self._progress.update(self._task, advance=1, description=description)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Scalars after ``step`` steps."""
        if self.writing:
            line = json.dumps({"step": step} | {name: float(f"{value:.6g}") for name, value in values.items()})
            self._log.write(line + "\n")
            self._log.flush()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, step: int, clips: list[Tensor]) -> None:
        """Four frames of each clip, uint8 (F, H, W, 3), one clip below the other."""
        if self.writing:
            rows = [torch.cat([clip[len(clip) * i // 4] for i in range(4)], dim=1) for clip in clips]
            self._board.add_image("held_out", torch.cat(rows), step, dataformats="HWC")


def read_log(folder: Path) -> list[dict[str, float]]:
    """The records of a run, in order."""
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def _truncate(path: Path, last_step: int) -> None:
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= last_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))
