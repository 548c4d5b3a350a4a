"""``tivtok train`` of which one process gets SIGTERM after so many steps: run by torchrun."""

import os
import signal
import sys

from tivtok.cli import main
from tivtok.training.trainer import Trainer

step = Trainer.step


def step_and_stop(self, video, number):
    done = step(self, video, number)
    if number + 1 == int(sys.argv[2]) and self.accelerator.is_main_process:
        os.kill(os.getpid(), signal.SIGTERM)
    return done


Trainer.step = step_and_stop
sys.exit(main(["train", sys.argv[1]]) != 128 + signal.SIGTERM)
