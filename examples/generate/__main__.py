"""Train a tokenizer and two generators on moving shapes, and compare what they draw and what it costs.

python -m examples.generate runs/shapes              # about an hour of one core; run again, it goes on
python -m examples.generate runs/toy --size toy      # seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from examples.generate.measuring import generated, measure, real
from examples.generate.report import draw_pictures, write_report
from examples.generate.settings import SETTINGS, Settings
from examples.generate.training import encode, train_flow, train_tokenizer
from tivtok.files import replacing


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

    model, of_tokenizer = train_tokenizer(settings, folder)
    latents = encode(model, settings)
    trained = {name: train_flow(name, latents, settings, folder) for name in ("split", "undivided")}
    flows = {name: flow for name, (flow, _) in trained.items()}
    measured = measure(model, latents.stats, flows, settings)
    training = {"tokenizer": of_tokenizer} | {name: how for name, (_, how) in trained.items()}
    result = {
        "command": f"python -m examples.generate FOLDER --size {chosen.size}",
        "torch": torch.__version__,
        "settings": asdict(settings),
        "training": {
            name: {
                "steps": len(how.losses),
                "loss": sum(how.losses[-100:]) / len(how.losses[-100:]),
                "seconds": how.seconds,
            }
            for name, how in training.items()
        },
        "measured": measured,
    }
    write_report(folder / "generate", result)
    ways = {name: generated(name, flow, model, latents.stats, settings) for name, flow in flows.items()}
    draw_pictures(folder / "generate", {"true": real} | ways, settings)
    print(f"generate: wrote {folder / 'generate.md'}")


if __name__ == "__main__":
    main()
