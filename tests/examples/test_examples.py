"""Every script in examples/ runs as written; each checks what it shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


# Takes a folder of videos and a cluster: tests/pipeline/test_ray.py.
OTHERS = {"ray_encode.py"}


@pytest.mark.parametrize(
    "path", sorted(p for p in EXAMPLES.glob("*.py") if p.name not in OTHERS), ids=lambda path: path.stem
)
def test_example(path):
    root = str(EXAMPLES.parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(path.stem.replace("_", " ").removeprefix("vit "))
    assert path.name in (EXAMPLES / "README.md").read_text()


def test_notebook(capsys):
    """Its code runs from top to bottom; its stored output is text and pictures, no warnings and no paths."""
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert "4 TIV sets: 144 tokens" in capsys.readouterr().out
    kinds = [kind for cell in cells for output in cell["outputs"] for kind in output.get("data", [output.get("name")])]
    assert {kind for kind in kinds if kind.startswith("image/")} and "stderr" not in kinds
