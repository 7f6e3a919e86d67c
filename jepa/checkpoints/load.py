"""From a file to a world model that is ready to use."""

from __future__ import annotations

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepa.errors import InputError
from jepa.models.world import WorldModel
from jepa.schema import Specs

FORMAT = 1


def describe(world: WorldModel, tree: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself: the class_path tree that built the world, and the data it was trained on."""
    if not isinstance(tree, dict):
        raise InputError(
            "a world that was built in Python does not say how to build it again; train it from a YAML config "
            "(jepa fit), or save its state_dict yourself"
        )
    return {"format": FORMAT, "world": tree, "specs": world.specs.to_dict()}


def load(
    path: str,
    untrained: bool = False,
    device: str = "cpu",
    allow: tuple[str, ...] = (),
) -> WorldModel:
    """Rebuild the world model of a checkpoint, in evaluation mode.

    Args:
        path: a checkpoint that ``jepa fit`` wrote.
        untrained: keep the random weights of the same architecture (seed 0): the baseline of every probe.
        device: where the model goes.
        allow: packages, other than jepa, whose classes the checkpoint may name.

    Raises:
        InputError: the file is missing, truncated, of another kind, holds pickled objects, or names foreign classes.
    """
    checkpoint = read(path)
    specs = read_specs(path, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        world = build(checkpoint["jepa"]["world"], allow)
        if not isinstance(world, WorldModel):
            raise InputError(f"{path} holds a {type(world).__name__}, not a WorldModel")
        world.bind(specs)
    if not untrained:
        prefix = "world."
        state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        try:
            world.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} does not fit the model that it describes: {reason}") from error
    return world.to(device).eval().requires_grad_(False)


def read(path: str | Path) -> dict[str, Any]:
    """The plain contents of a checkpoint file; tensors stay on the CPU."""
    if not Path(path).is_file():
        raise InputError(f"no checkpoint at {path}; expected a file that `jepa fit` wrote, e.g. runs/NAME/last.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled objects or is no checkpoint; only tensors and plain values are read, because "
            "unpickling can run code: export its state dict with the program that wrote it"
        ) from error
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        raise InputError(
            f"{path} is truncated or damaged ({error.__class__.__name__}); use an earlier checkpoint of the run"
        ) from error
    if not isinstance(checkpoint, dict) or "jepa" not in checkpoint:
        raise InputError(f"{path} was not written by `jepa fit`: it does not describe its model")
    about = checkpoint["jepa"]
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        given = about.get("format") if isinstance(about, dict) else None
        raise InputError(
            f"{path} has checkpoint format {given}, this version of jepa reads format {FORMAT}; "
            "load it with the version that wrote it"
        )
    parts = {"world": about, "specs": about, "state_dict": checkpoint}
    if missing := [key for key, holder in parts.items() if key not in holder]:
        raise InputError(f"{path} lacks {', '.join(missing)}; expected a whole checkpoint, as `jepa fit` writes it")
    return checkpoint


def read_specs(path: str | Path, checkpoint: dict[str, Any]) -> Specs:
    """What a checkpoint that :func:`read` gave says of the data it was trained on."""
    try:
        return Specs.from_dict(checkpoint["jepa"]["specs"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} describes its data in a way that cannot be read here: {error!r}") from error


def build(tree: Any, allow: tuple[str, ...] = ()) -> Any:
    """Instantiate a class_path tree of modules that are defined in jepa or in an allowed package."""
    if isinstance(tree, list):
        return [build(item, allow) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "class_path" not in tree:
        return {key: build(value, allow) for key, value in tree.items()}
    kind = _find_class(tree["class_path"], allow)
    # the checkpoint brings the weights; the file that training began from may be gone, and `untrained` wants none
    given = {key: value for key, value in tree.get("init_args", {}).items() if key != "weights"}
    arguments = {key: build(value, allow) for key, value in given.items()}
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the checkpoint's {tree['class_path']} cannot be built here: {reason}") from error


def _find_class(class_path: str, allow: tuple[str, ...]) -> type[nn.Module]:
    """A module class by name. Anything else that can be called is refused: functions write files and start programs."""
    module, _, name = class_path.rpartition(".")
    package = module.split(".")[0]
    if package not in ("jepa", *allow):
        raise InputError(
            f"the checkpoint wants to build {class_path}, which is not part of jepa; if you trust it, "
            f"name its package: load(..., allow=({package!r},))"
        )
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the checkpoint's {class_path} cannot be built here: {error}") from error
    home = getattr(kind, "__module__", "").split(".")[0]
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and home in ("jepa", *allow)):
        raise InputError(f"the checkpoint wants to build {class_path}, which is not a module of a world model")
    return kind
