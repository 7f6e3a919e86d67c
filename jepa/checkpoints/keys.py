"""Published state dicts: read without running what a file brings, renamed key by key, loaded strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jepa.errors import InputError

Rules = Sequence[tuple[str, str]]  # a pattern of the whole published key -> ours, as for re.sub
State = Mapping[str, Tensor]


def read_tensors(path: str | Path) -> dict[str, Any]:
    """What a .safetensors file, or a file of torch.save with tensors and plain values, holds."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}; give the path of a published state dict (.pt or .safetensors)")
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the readers raise anything
        raise InputError(
            f"{path} is damaged or holds more than tensors ({error.__class__.__name__}); export its state dict with "
            "the program that wrote it"
        ) from error
    if not isinstance(held, dict):
        raise InputError(f"{path} holds a {type(held).__name__}; expected a state dict, from names to tensors")
    return held


def rename(
    state: State, rules: Rules, unused: Sequence[str], prefixes: Sequence[str], what: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in our names, and the published keys that our parts do not need.

    Args:
        state: as published.
        rules: what becomes of each key, after the prefixes are gone.
        unused: patterns of the keys that are left over.
        prefixes: that wrappers put before every key, e.g. "module."; taken off one after the other, where present.
        what: the family, for the error.

    Raises:
        InputError: a key that neither the rules nor ``unused`` know.
    """
    ours: dict[str, Tensor] = {}
    leftovers, unknown = [], []
    for key, value in state.items():
        bare = key
        for prefix in prefixes:
            bare = bare.removeprefix(prefix)
        name = _renamed(bare, rules)
        if name is not None:
            ours[name] = value
        elif any(re.fullmatch(pattern, bare) for pattern in unused):
            leftovers.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise InputError(
            f"{what} has no part for {unknown[0]!r} and {len(unknown) - 1} more of {len(state)} keys; give the state "
            f"dict of a published {what} model"
        )
    return ours, leftovers


def _renamed(key: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None


def fill(module: nn.Module, state: State, what: str) -> None:
    """Load a renamed state dict, every key of it and of the module."""
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the state dict does not fit {what}: {reason}; give that of the whole model") from error


def shape_of(state: State, key: str, what: str) -> torch.Size:
    """The shape of one renamed tensor, from which a size is read."""
    if key not in state:
        raise InputError(f"the state dict of {what} lacks what becomes {key}; give that of the whole model")
    return state[key].shape


def count(state: State, prefix: str) -> int:
    """How many numbered children follow a prefix, e.g. "blocks."."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
