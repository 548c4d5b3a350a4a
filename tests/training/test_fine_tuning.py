"""What one changes of a run that others have set up: single values, frozen parts, trackers, where the result goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from accelerate.tracking import GeneralTracker
from huggingface_hub.errors import HFValidationError

from tivtok.checkpoints import CheckpointError, load_checkpoint, push_checkpoint
from tivtok.training import TrainConfig, journal, train
from tivtok.training.state import load_state

TOML = """
output = "runs/x"
data = "clips"
steps = 5

[model]
preset = "tiny"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    return path


def test_set_changes_any_field(toml: Path) -> None:
    settings = [
        "steps=7",
        "learning_rate=1e-3",
        "strides=[1, 2]",
        "output = runs/y z",
        "compile=true",
        "model.width=96",
    ]
    settings += ["model.native_size=[32, 48]", "perceptual.net=alex", "held_out=['a=b*']", "steps=8", "seed=3", "seed="]
    config = TrainConfig.load(toml, settings)
    assert (config.steps, config.learning_rate, config.strides, config.compile) == (8, 1e-3, (1, 2), True)
    assert (config.output, config.held_out, config.seed) == (Path("runs/y z"), ("a=b*",), 0)
    assert (config.model.width, config.model.native_size) == (96, (32, 48))
    assert config.perceptual is not None and config.perceptual.net == "alex"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("step=5", r"run\.toml: unknown keys: step"),
        ("model.wide=5", "unknown config keys: wide"),
        ("perceptual.nets=vgg", "unknown keys: nets"),
        ("steps", 'KEY=VALUE, such as steps=100 or model.width=64, got "steps"'),
        ("=5", "--set takes KEY=VALUE"),
        ("steps.x=5", '"steps" is no table'),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("steps=1.5", r"steps must be a whole number, got 1\.5"),
        ("steps=true", "steps must be a whole number, got True"),
        ("model.width='96'", r"model\.width must be a whole number, got '96'"),
        ("model.native_size=[32]", r"model\.native_size must be a list of 2 int, got \[32\]"),
        ("compile=1", "compile must be true or false, got 1"),
        ("betas=[0.9, '1']", r"betas must be a list of 2 float, got \[0\.9, '1'\]"),
        ("chunks=x", "chunks must be a whole number or a list of int, got 'x'"),
        ("perceptual.weight=x", r"perceptual\.weight must be a number, got 'x'"),
        ("perceptual=vgg", "perceptual must be a table, got 'vgg'"),
        ("optimizer=adam", "optimizer must be one of"),
        ("model.preset=", r"missing keys: model\.preset"),
    ],
)
def test_mistakes_in_settings_are_named(toml: Path, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.load(toml, [setting])


def test_frozen_parts_stay_as_they_are(
    full_config: TrainConfig, train_and_kill: Callable[[TrainConfig, int], None]
) -> None:
    """In one go, and resumed."""
    config = replace(full_config, steps=4, save_every=2, frozen=("encoder", "decoder.blocks.0.mlp"))
    first = replace(config, output=config.output / "first", steps=1, save_every=1, frozen=(), adversarial=None)
    start = load_checkpoint(train(first)).weights
    config = replace(config, start_from=first.output)
    train(config)
    resumed = replace(config, output=config.output / "resumed")
    train_and_kill(resumed, 3)
    train(resumed)
    end, again = (load_state(c.output / "state.safetensors")[0] for c in (config, resumed))
    assert end.keys() == again.keys() and all(torch.equal(x, again[name]) for name, x in end.items())
    for name, x in start.items():
        kept = name.startswith(("encoder.", "decoder.blocks.0.mlp."))
        assert torch.equal(end[f"model.{name}"], x) == torch.equal(end[f"average.{name}"], x) == kept, name
    for frozen, message in (
        (("encode",), 'of decoder, encoder, quantizer, got "encode"'),
        (("decoder", "encoder", "quantizer"), "leave something"),
    ):
        with pytest.raises(ValueError, match=message):
            train(replace(config, output=config.output / "none", frozen=frozen))


class Notebook(GeneralTracker):
    name = "notebook"
    requires_logging_directory = False
    tracker = None
    pages: list[tuple[str, object]] = []  # noqa: RUF012 (accelerate makes the tracker)

    def __init__(self, project: str) -> None:
        super().__init__()
        self.pages.append(("begun", project))

    def store_init_configuration(self, values: dict) -> None: ...

    def log(self, values: dict, step: int | None = None, **kwargs: object) -> None:
        self.pages.append(("log", step))

    def finish(self) -> None:
        self.pages.append(("finished", None))


def test_trackers_are_accelerates(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(journal.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    config = replace(config, steps=2, evaluate_every=2, trackers=("notebook",))
    with pytest.raises(ValueError, match='the tracker "notebook" needs its package: pip install notebook'):
        train(config)
    monkeypatch.setattr(journal, "get_available_trackers", lambda: ["notebook"])
    train(config)
    assert Notebook.pages == [("begun", "run"), ("log", 1), ("log", 2), ("finished", None)]
    assert not (config.output / "tensorboard").exists()
    with pytest.raises(ValueError, match=r'trackers must be of .*wandb.*, got "diary"'):
        train(replace(config, trackers=("diary",)))


class Hub:
    """In place of huggingface_hub's HfApi."""

    calls: list[tuple] = []  # noqa: RUF012

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        if "/" not in repository:
            raise HFValidationError("no such name")
        self.calls.append(("create", repository, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> SimpleNamespace:
        self.calls.append(("upload", repo_id, folder_path, sorted(allow_patterns)))
        return SimpleNamespace(commit_url="https://hub/commit")


def test_the_last_checkpoint_goes_to_the_hub(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    folder = train(replace(config, steps=1, push_to_hub="me/tokenizer"))
    files = ["config.json", "model.safetensors"]
    assert Hub.calls == [("create", "me/tokenizer", True, True), ("upload", "me/tokenizer", folder, files)]
    assert push_checkpoint(folder, "me/tokenizer") == "https://hub/commit"
    with pytest.raises(CheckpointError, match="could not be uploaded to nowhere: no such name"):
        push_checkpoint(folder, "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        push_checkpoint(folder.parent, "me/tokenizer")
