"""The files for SLURM and SkyPilot parse, and what they call exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tivtok.cli import main

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
SCRIPTS = {path.name: path.read_text() for path in LAUNCH.glob("*.sbatch")}
SKY = {path.name: yaml.safe_load(path.read_text()) for path in LAUNCH.glob("*.yaml")}
SHELL = SCRIPTS | {name: task["run"] for name, task in SKY.items()}


def test_there_are_files_for_both() -> None:
    assert sorted(SHELL) == ["encode.sbatch", "train.sbatch", "train.sky.yaml"]
    assert all(name in (LAUNCH.parent / "README.md").read_text() for name in SHELL)


@pytest.mark.parametrize("name", SHELL)
def test_shell(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(["bash", "-n"], input=SHELL[name], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    (call,) = re.findall(r"tivtok ((?:train|encode-dir) .*)", SHELL[name].split("#SBATCH")[-1])
    command, *words = call.split()
    assert main([command, "--help"]) == 0
    known = capsys.readouterr().out
    assert all(word in known for word in words if word.startswith("--"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_slurm(name: str) -> None:
    first, *lines = SCRIPTS[name].splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    commands = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert first == "#!/bin/bash" and all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for option in options)
    assert not any(line.startswith("#SBATCH") for line in lines[commands:])  # SLURM reads none behind a command


@pytest.mark.parametrize("name", SKY)
def test_sky(name: str) -> None:
    assert set(SKY[name]) <= {"name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run"}
    assert (LAUNCH.parents[1] / SKY[name]["envs"]["CONFIG"]).is_file()
