"""Published state dicts: read without running what a file brings, renamed key by key, loaded strictly."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jepa.errors import InputError

Rules = Sequence[tuple[str, str]]  # a pattern of the whole published key -> ours, as for re.sub
State = Mapping[str, Tensor]

PREFIXES = ("module.", "backbone.")  # of DDP and of the wrapper that loops over masks


def read_tensors(path: str | Path) -> dict[str, Any]:
    """What a .safetensors file, a folder of them, or a file of torch.save with tensors and plain values holds.

    Tensors are mapped from the disk where the file allows it: what is not used (the state of an optimiser) is not read.

    Raises:
        InputError: the file is missing or damaged, or holds objects, which would run code when they are unpickled; or
            two files of a folder hold a tensor of one name.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(f"no weights at {path}; give the path of a published state dict (.pt or .safetensors)")
    held = [_read_file(file) for file in files]
    if not all(isinstance(part, dict) for part in held):
        raise InputError(f"{path} holds a {type(held[0]).__name__}; expected a state dict, from names to tensors")
    found: dict[str, Path] = {}
    for file, part in zip(files, held):
        for name in part:
            if (other := found.setdefault(name, file)) is not file:
                raise InputError(
                    f"{path} holds {name!r} twice, in {other.name} and in {file.name}: these are two models; give the "
                    "path of one file"
                )
    return {name: value for part in held for name, value in part.items()}


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return unpickle(path, mmap=True)
    try:
        return load_file(path)
    except Exception as error:  # damaged bytes can make the reader raise anything
        raise InputError(f"{path} is damaged ({error.__class__.__name__}); write or download it again") from error


def unpickle(path: str | Path, mmap: bool = False) -> Any:
    """What a file of torch.save holds; tensors stay on the CPU. Nothing in it runs.

    ``mmap`` maps tensors from the disk, where the file allows it: what is not used is not read, but not checked either.

    Raises:
        InputError: the file is damaged, or holds objects, which would run code when they are unpickled.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled objects, or is damaged or no checkpoint; only tensors and plain values are read, "
            "because unpickling can run code: export its state dict with the program that wrote it"
        ) from error
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise InputError(
            f"{path} is truncated or damaged ({error.__class__.__name__}); use an earlier checkpoint of the run, or "
            "download it again"
        ) from error


def bare(state: State, prefixes: Sequence[str] = PREFIXES) -> dict[str, Tensor]:
    """The state dict without the prefixes, outermost first, that stand before every one of its keys."""
    for prefix in prefixes:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


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
        InputError: a key that neither the rules nor ``unused`` know, or two keys that become one.
    """
    ours: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    leftovers, unknown = [], []
    for key, value in state.items():
        bare = key
        for prefix in prefixes:
            bare = bare.removeprefix(prefix)
        name = _renamed(bare, rules)
        if name is not None:
            if name in ours:
                raise InputError(
                    f"{sources[name]!r} and {key!r} of {what} are the same tensor under two names; give a state dict "
                    "with one of them"
                )
            ours[name], sources[name] = value, key
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


def join(state: State, parts: Sequence[str], whole: str, what: str) -> dict[str, Tensor]:
    """One tensor, ``whole``, for those that ``parts`` name, e.g. attn.qkv for attn.query, attn.key and attn.value."""
    joined = dict(state)
    for key in state:
        for kind in ("weight", "bias"):
            if key.endswith(f".{parts[0]}.{kind}"):
                stem = key.removesuffix(f"{parts[0]}.{kind}")
                names = [f"{stem}{part}.{kind}" for part in parts]
                same_shape(state, names, what)
                joined[f"{stem}{whole}.{kind}"] = torch.cat([joined.pop(name) for name in names])
    return joined


def split(state: State, whole: str, parts: Sequence[str]) -> dict[str, Tensor]:
    """The inverse of :func:`join`."""
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, found, kind = key.rpartition(f".{whole}.")
        pieces = value.chunk(len(parts)) if found else ()
        made |= {f"{stem}.{part}.{kind}": piece for part, piece in zip(parts, pieces)} if found else {key: value}
    return made


def fill(module: nn.Module, state: State, what: str) -> None:
    """Load a renamed state dict, every key of it and of the module."""
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the state dict does not fit {what}: {reason}; give that of the whole model") from error


def shape_of(state: State, key: str, what: str, axes: int | None = None) -> torch.Size:
    """The shape of one renamed tensor, from which sizes are read; of so many ``axes``, where that must be so."""
    if key not in state:
        raise InputError(f"the state dict of {what} lacks what becomes {key}; give that of the whole model")
    shape = state[key].shape
    if axes is not None and len(shape) != axes:
        raise InputError(f"{key} of {what} has shape {tuple(shape)}, expected {axes} axes; give a published state dict")
    if 0 in shape:
        raise InputError(f"{key} of {what} has shape {tuple(shape)}, an empty tensor; give a published state dict")
    return shape


def same_shape(state: State, keys: Sequence[str], what: str) -> None:
    """InputError unless these tensors, which become one, are there and of one shape."""
    shapes = {key: tuple(shape_of(state, key, what)) for key in keys}
    for key, shape in shapes.items():
        if shape != shapes[keys[0]] or not shape:
            raise InputError(
                f"{key} of {what} has shape {shape}, {keys[0]} has {shapes[keys[0]]}; expected one shape of at least "
                "one axis: give a published state dict"
            )


def count(state: State, prefix: str) -> int:
    """How many numbered children follow a prefix, e.g. "blocks."."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
