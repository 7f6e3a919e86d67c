"""Small parts beside a world model, each in a file of its own: what it is, its options, and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from jepa.errors import InputError
from jepa.files import replacing
from jepa.models.weights import fill

_KEY = "jepa"
Part = TypeVar("Part", bound=nn.Module)


def save_part(part: nn.Module, path: Path | str, options: dict[str, Any]) -> None:
    """Write a .safetensors file, whole or not at all, that :func:`load_part` reads.

    Args:
        part: whose weights and buffers are kept
        path: of the file
        options: plain values that build the part again
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is to hold weights; give it a name that ends in .safetensors")
    meta = {_KEY: json.dumps({"part": type(part).__name__, "options": options})}
    weights = {name: value.detach().cpu().contiguous() for name, value in part.state_dict().items()}
    with replacing(path) as partial:
        save_file(weights, partial, meta)


def load_part(path: Path | str, kind: str, build: Callable[[dict[str, Any]], Part]) -> Part:
    """A part that :func:`save_part` wrote, in evaluation mode and without gradients.

    Args:
        path: of its file
        kind: name of its class
        build: makes it from its options

    Raises:
        InputError: the file is missing, damaged, of another version, or holds something else.
    """
    options = _read_options(path, kind)
    try:
        part = build(options)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} describes no {kind} of this version ({error}); fit it again") from error
    with safe_open(Path(path), "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
    fill(part, state, Path(path), kind)
    return part.eval().requires_grad_(False)


def _read_options(path: Path | str, kind: str) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no {kind} at {path}; fit one and save it there")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}); fit and save the {kind} again") from error
    if not isinstance(about, dict) or about.get("part") != kind or not isinstance(about.get("options"), dict):
        found = about.get("part") if isinstance(about, dict) else None
        raise InputError(f"{path} holds {found or 'other weights'}, not a {kind}; give the file of a {kind}")
    return about["options"]
