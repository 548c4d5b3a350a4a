"""``tivtok train`` tells what is missing in one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from accelerate.utils import DistributedType

from tivtok import training
from tivtok.cli.output import CommandError
from tivtok.cli.train import train
from tivtok.metrics.weights import WeightsError
from tivtok.training import TrainConfig, TrainingError, TrainingStopped
from tivtok.training.losses import load_perceptual
from tivtok.training.state import load_state
from tivtok.training.trainer import check_sharding


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith("tivtok.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(CommandError, match=r"training needs accelerate: pip install 'tivtok\[train\]'"):
        train(tmp_path / "any.toml")


@pytest.mark.parametrize("end", [TrainingError("not finite"), TrainingStopped("saved"), Path("checkpoint")], ids=repr)
def test_processes_leave_whatever_the_end(end: Path | RuntimeError, config: TrainConfig, monkeypatch) -> None:
    """All of them get there; what holds the model, and so their group, is gone by then."""
    left: list[object] = []

    def run(config: TrainConfig) -> Path:
        if isinstance(end, Path):
            return end
        raise end.with_traceback(None)

    monkeypatch.setattr(training.TrainConfig, "load", lambda path, settings: config)
    monkeypatch.setattr(training, "train", run)
    monkeypatch.setattr(training, "leave_processes", lambda: left.append(sys.exc_info()[1]))
    with pytest.raises(CommandError if isinstance(end, TrainingError) else typer.Exit):
        train(Path("any.toml"))
    assert left == [None]


def test_without_lpips_weights(full_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIVTOK_HOME", str(tmp_path))
    config = replace(full_config, perceptual=replace(full_config.perceptual, weights=None))
    with pytest.raises(WeightsError, match="lpips-alex"):
        load_perceptual(config)


def test_kinds_of_fsdp_that_do_not_work(config: TrainConfig) -> None:
    for version2, message in ((False, "FSDP must be version 2"), (True, 'must be "adamw" under FSDP, got "muon"')):
        accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=version2)
        with pytest.raises(ValueError, match=message):
            check_sharding(config, accelerator)


def test_what_is_no_state_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"state\.safetensors is not the state of a run"):
        load_state(path)
