"""Weights for one module, out of a file that cannot run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jepa.errors import InputError


def read_state(path: Path, what: str, remedy: str) -> dict[str, Tensor]:
    """What a .safetensors file, or a file of torch.save with tensors and plain values, holds.

    Args:
        path: the file.
        what: whose weights they are, for the error.
        remedy: what the user is to give instead, for the error.

    Raises:
        InputError: the file is missing or damaged, or holds objects, which would run code when they are unpickled.
    """
    if not path.is_file():
        raise InputError(f"no weights of {what} at {path}; {remedy}")
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the readers raise anything
        raise InputError(
            f"{path} is damaged or holds more than tensors and plain values ({error.__class__.__name__}); {remedy}"
        ) from error


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load a state dict that was read from ``path``, every key of it and of the module.

    Raises:
        InputError: they do not fit.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit {what}: {' '.join(str(error).split())[:300]}") from error
