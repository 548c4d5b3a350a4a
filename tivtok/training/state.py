"""State of wrapped models and optimizers as plain whole tensors, and one safetensors file of it.

torch.distributed.checkpoint's functions give parameters the same names under DDP and FSDP as alone, so a run may go on
with other processes than it began with. Nothing is pickled, as accelerate's ``save_state`` would.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import safetensors
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from tivtok.checkpoints import write_tensors
from tivtok.files import utf8_path

_GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SHARE = StateDictOptions(full_state_dict=True)

# What the metadata of a state must say.
COUNTS = {"step", "bad_steps"}

# By parameter, by name.
_States = dict[str, dict[str, Tensor]]


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers, on the CPU of the main process; others get nothing. A collective call."""
    state = cast("dict[str, Tensor]", get_model_state_dict(model, options=_GATHER))
    return {name: x.clone() for name, x in state.items()}


def restore_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `model_state`, given the same tensors on every process.

    Raises:
        ValueError: they are of another model.
    """
    try:
        set_model_state_dict(model, dict(tensors), options=_SHARE)
    except RuntimeError as error:
        raise ValueError(f"the state is of a different model: {error}") from None


def optimizer_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' tensors by "parameter.name", as `model_state`; none before their first step."""
    if not any(optimizer.state for optimizer in optimizers):
        return {}  # asking for it would make an empty state, and count that as a step
    state = cast("_States", get_optimizer_state_dict(model, optimizers, options=_GATHER).get("state", {}))
    return {f"{parameter}.{name}": x for parameter, values in state.items() for name, x in values.items()}


def restore_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_state`; learning rates and the like stay as they are.

    Raises:
        ValueError: they are of other optimizers.
    """
    if not tensors:
        return
    whole = get_optimizer_state_dict(model, optimizers, options=_SHARE)
    states = cast("_States", whole["state"])
    have = {f"{parameter}.{name}" for parameter, values in states.items() for name in values}
    if have != tensors.keys():
        raise ValueError(f"the state is of different optimizers: {sorted(have ^ tensors.keys())[:3]}")
    for parameter, values in states.items():
        for name in values:
            values[name] = tensors[f"{parameter}.{name}"]
    set_optimizer_state_dict(model, optimizers, whole, options=_SHARE)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def save_state(path: Path, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
    """Tensors, and ``counts`` in the file's metadata; complete or not at all."""
    write_tensors(path, tensors, {name: str(count) for name, count in counts.items()})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Read what `save_state` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: it is none of these.
    """
    try:
        with utf8_path(path) as opened, safetensors.safe_open(opened, framework="pt") as file:
            counts = {name: int(count) for name, count in (file.metadata() or {}).items()}
            if not counts.keys() >= COUNTS:
                raise ValueError(f"it must count {sorted(COUNTS)}")
            return {name: file.get_tensor(name) for name in file.keys()}, counts  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not the state of a run: {error}") from None
