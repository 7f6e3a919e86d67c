"""To begin a training where another one ended: with its weights and its optimiser's moments, but schedules anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from jepa.checkpoints.load import read
from jepa.errors import InputError

log = logging.getLogger(__name__)


def start_from(path: str, world: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill a model, its target included, and a fresh optimiser from a checkpoint. Both may be sharded.

    The moments are left at zero, with a warning, if the checkpoint has none or was optimised with other parameters.

    Raises:
        InputError: the checkpoint cannot be read, or is of another model.
    """
    checkpoint = read(path)
    _load_weights(world, checkpoint["state_dict"], path)
    reason = _carry_moments(optimizer, checkpoint.get("optimizer_states"))
    if reason:
        log.warning("training starts with the weights of %s, and with moments of zero: %s", path, reason)
    else:
        log.info("training starts with the weights and the moments of %s", path)


def check_weights(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: str) -> None:
    """InputError if two state dicts differ in names or shapes."""
    here, there = ({name: list(value.shape) for name, value in state.items()} for state in (mine, theirs))
    if differ := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        shapes = [state.get(differ[0], "missing") for state in (there, here)]
        raise InputError(
            f"{source} is of another model: {differ[0]} is {shapes[0]} there and {shapes[1]} here, and "
            f"{len(differ) - 1} more differ; give the configuration that wrote it (config.yaml in its logs)"
        )


def _load_weights(world: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    prefix = "world."
    held = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    check_weights(world.state_dict(), held, path)
    set_model_state_dict(world, held, options=StateDictOptions(full_state_dict=True))


def _carry_moments(optimizer: torch.optim.Optimizer, states: list[dict[str, Any]] | None) -> str:
    """Why the moments were not carried over, or nothing."""
    if not states:
        return "it holds no optimiser"
    mine = [group["params"] for group in optimizer.param_groups]
    theirs = [group["params"] for group in states[0]["param_groups"]]  # numbers, in the order of the parameters
    held = [[states[0]["state"].get(number, {}) for number in group] for group in theirs]
    pairs = [pair for parameters, moments in zip(mine, held) for pair in zip(parameters, moments)]
    if list(map(len, mine)) != list(map(len, theirs)) or not all(_fits(*pair) for pair in pairs):
        return "it was optimised with other parameters"
    for parameter, moments in pairs:
        optimizer.state[parameter] = {name: _like(parameter, value) for name, value in moments.items()}
    return ""


def _fits(parameter: Tensor, moments: dict[str, Tensor]) -> bool:
    return all(value.ndim == 0 or value.shape == parameter.shape for value in moments.values())


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment, where its parameter is and sharded as it is; the count of steps is a number on the CPU."""
    if value.ndim == 0:
        return value.clone()
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device, copy=True)
