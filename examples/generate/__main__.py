"""Train a tokenizer and three generators on moving shapes, and compare what they draw and what it costs.

python -m examples.generate runs/shapes              # half an hour of one core; run again, it goes on
python -m examples.generate runs/toy --size toy      # seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from examples.generate.flow import Flow
from examples.generate.measuring import generated, measure, real
from examples.generate.report import draw_pictures, write_report
from examples.generate.settings import SETTINGS, Settings
from examples.generate.training import Trained, encode, train_flow, train_tokenizer
from examples.generate.ways import WAYS
from tivtok.files import replacing
from tivtok_kernels.measured import device_name


def begin(folder: Path, settings: Settings) -> None:
    """Note what a run is made of, so that none goes on with another's state.

    Raises:
        SystemExit: another one was begun there.
    """
    stated, path = json.dumps(asdict(settings), indent=1) + "\n", folder / "settings.json"
    if path.exists() and path.read_text(encoding="utf-8") != stated:
        raise SystemExit(f"{folder} has a run with other settings: name another folder")
    with replacing(path) as temporary:
        temporary.write_text(stated, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="keeps the state of the run; its result is written into it")
    parser.add_argument("--size", choices=list(SETTINGS), default="full")
    chosen = parser.parse_args()
    folder, settings = chosen.folder, SETTINGS[chosen.size]
    folder.mkdir(parents=True, exist_ok=True)
    begin(folder, settings)

    training: dict[str, Trained] = {}
    model, training["tokenizer"] = train_tokenizer(settings, folder)
    videos, stats = encode(model, settings)
    flows: dict[str, Flow] = {}
    for way in WAYS:
        flows[way], training[way] = train_flow(way, videos, settings, folder)
    result = {
        "command": f"python -m examples.generate FOLDER --size {chosen.size}",
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": asdict(settings),
        "training": {
            name: {"steps": len(how.losses), "loss": float(np.mean(how.losses[-100:])), "seconds": how.seconds}
            for name, how in training.items()
        },
        "measured": measure(model, stats, flows, settings),
    }
    write_report(folder / "generate", result)
    sources = {way: generated(way, flow, model, stats, settings) for way, flow in flows.items()}
    draw_pictures(folder / "generate", {"true": real} | sources, settings)
    print(f"generate: wrote {folder / 'generate.md'}")


if __name__ == "__main__":
    main()
