"""Say what each process of a run is told of its videos, and how often it has looked itself: run by torchrun."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from tivtok.training import TrainConfig, leave_processes, split

accelerator = Accelerator(cpu=True)
looked, look = [], split.split_sources
split.split_sources = lambda config: looked.append(1) or look(config)
said = []
for setting in ("held_out=['test*']", "held_out=['none']"):
    try:
        training, held_out, _ = split.shared_sources(TrainConfig.load(sys.argv[1], [setting]), accelerator)
        said.append([ref.name for ref in training + held_out])
    except ValueError as error:
        said.append(str(error))
rank = accelerator.process_index
Path(sys.argv[2], f"{rank}.json").write_text(json.dumps({"looked": len(looked), "said": said}))
leave_processes()
