"""Measuring a run on its held-out clips."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tivtok.training.data import held_out_frames
from tivtok.training.trainer import Trainer
from tivtok.video import frames_to_video, video_to_frames
from tivtok.video.sources import VideoRef

NUM_SHOWN = 4


class Evaluation:
    """The held-out clips, shared out over the processes.

    Attributes:
        shown: from the last measurement, the first `NUM_SHOWN` clips of this process and their reconstructions by
            turns, uint8 (F, H, W, 3).
    """

    def __init__(self, trainer: Trainer, held_out: list[VideoRef]) -> None:
        self.trainer = trainer
        self.num_clips = len(held_out)
        self.processes = trainer.accelerator.num_processes
        # Every process gets as many, some of them again, since under FSDP all must run the model together.
        self.numbers = range(trainer.accelerator.process_index, self.num_clips + self.processes - 1, self.processes)
        self.clips = [held_out_frames(held_out[n % self.num_clips], trainer.config) for n in self.numbers]
        self.shown: list[torch.Tensor] = []

    @torch.no_grad()
    def psnr(self) -> float:
        """Mean over the clips of the averaged weights' PSNR in dB, over the whole clip, after clamping."""
        trainer = self.trainer
        trainer.model.eval()
        total, self.shown = 0.0, []
        with trainer.average.applied():
            for number, frames in zip(self.numbers, self.clips, strict=True):
                clip = frames_to_video(frames).to(trainer.accelerator.device)
                reconstruction = trainer.model(clip[None])[0].clamp(-1, 1)
                if number < self.num_clips:
                    total += 10 * math.log10(4 / float(F.mse_loss(reconstruction, clip)))
                if len(self.shown) < 2 * NUM_SHOWN:
                    self.shown += [frames, video_to_frames(reconstruction).cpu()]
        trainer.model.train()
        everyones = trainer.accelerator.reduce(torch.tensor(total, device=trainer.accelerator.device), "sum")
        return float(everyones) / self.num_clips
