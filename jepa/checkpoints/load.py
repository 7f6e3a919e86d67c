"""From a file to a model that is ready to use."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from jepa.checkpoints.attentive import Probe
from jepa.checkpoints.keys import unpickle
from jepa.checkpoints.published import Which, is_published, model_of, open_published, probe_of
from jepa.checkpoints.sizes import Family, Sizes
from jepa.errors import InputError, check_choice
from jepa.models.frozen import FrozenEncoder
from jepa.models.masked import MaskedJEPA
from jepa.models.positions import Form
from jepa.models.world import WorldModel
from jepa.schema import Specs

FORMAT = 1


def describe(world: WorldModel | MaskedJEPA, tree: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself: the class_path tree that built the world, and the data it was trained on."""
    if not isinstance(tree, dict):
        raise InputError(
            "a world that was built in Python does not say how to build it again; train it from a YAML config "
            "(jepa fit), or save its state_dict yourself"
        )
    return {"format": FORMAT, "world": tree, "specs": world.specs.to_dict()}


def load(
    path: str,
    which: Which = "target",
    untrained: bool = False,
    device: str = "cpu",
    allow: tuple[str, ...] = (),
    family: Family | None = None,
    heads: int | None = None,
    predictor_heads: int | None = None,
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    positions: Form | None = None,
    probe: int | None = None,
) -> WorldModel:
    # annotated with the most able of what it returns, so that a configuration may name it where any of them is due
    """Rebuild the model of a checkpoint, or of published weights, in evaluation mode.

    Returns a WorldModel or a MaskedJEPA, as a checkpoint describes it. Of published weights: a MaskedJEPA; where a file
    has no predictor, a FrozenEncoder; of an attentive probe, an AttentiveClassifier or an ActionAnticipator. Keys of
    published files that no part needs are logged, and listed in the model's ``leftovers``; unknown ones are refused.

    Args:
        path: a checkpoint that ``jepa fit`` wrote; an official file of I-JEPA, V-JEPA, V-JEPA 2 or V-JEPA 2.1, or of
            one of their attentive probes; V-JEPA 2 of HF transformers, as .safetensors or as its folder.
        which: the encoder of a masked model that embeds: the target's (an average over the training), or the context's.
        untrained: keep the random weights of the same architecture (seed 0): the baseline of every probe.
        device: where the model goes.
        allow: packages, other than jepa, whose classes the checkpoint may name.
        family: of published weights, where they do not tell it; this and what follows leave no trace in some of them,
            are looked up in the table of published models, and override it.
        heads: attention heads of the encoder, or of the probe.
        predictor_heads: attention heads of the predictor.
        size: height and width of a frame in pixels, one number where they are equal; where sine-cosine positions are
            stored (I-JEPA, V-JEPA), it and the frames are theirs, and others are refused.
        frames: of the longest video.
        positions: their form, as for jepa.models.video.VideoViT.
        probe: which of several probes of a file, from 0; null for the model where a file has both.

    Raises:
        InputError: the file is missing, damaged, of another kind, holds pickled objects, names foreign classes, has
            unknown keys, or does not say sizes that must be given.
    """
    check_choice("which", which, get_args(Which))
    frame = (size, size) if isinstance(size, int) else size
    given = Sizes(family, heads, predictor_heads, None if frame is None else tuple(frame), frames, positions)
    source = Path(path)
    if not (source.is_file() or any(source.glob("*.safetensors"))):
        raise InputError(f"no checkpoint at {path}; expected a file that `jepa fit` wrote, or published weights")
    held = None if source.is_dir() or source.suffix == ".safetensors" else unpickle(source, mmap=True)
    if held is None or is_published(held):
        model = _load_published(source, held, which, given, untrained, probe)
    else:
        if given != Sizes() or probe is not None:
            raise InputError(f"{path} describes itself; give family, heads, size, ... for published weights only")
        model = _load_described(path, which, untrained, allow)
    return model.to(device).eval().requires_grad_(False)


def _load_published(
    path: Path, held: Any, which: Which, given: Sizes, untrained: bool, probe: int | None
) -> MaskedJEPA | FrozenEncoder | Probe:
    contents = open_published(path, held)
    if probe is None and (contents.encoders or not contents.probes):
        return model_of(contents, which, given, untrained, path.name)
    if untrained:
        raise InputError(f"{path} holds a probe, which has no untrained baseline; load the encoder with untrained=true")
    given.check()
    if not isinstance(probe, int | None):
        raise InputError(f"probe was given {probe!r}; expected the number of one in {path}, from 0 on")
    return probe_of(contents, probe or 0, given.heads, path.name)


def _load_described(path: str, which: Which, untrained: bool, allow: tuple[str, ...]) -> WorldModel | MaskedJEPA:
    checkpoint = read(path)
    specs = read_specs(path, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        world = build(checkpoint["jepa"]["world"], allow)
        if not isinstance(world, (WorldModel, MaskedJEPA)):
            raise InputError(f"{path} holds a {type(world).__name__}, not a WorldModel or a MaskedJEPA")
        world.bind(specs)
    if isinstance(world, MaskedJEPA):
        world.reads = which
    if not untrained:
        prefix = "world."
        state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        try:
            world.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} does not fit the model that it describes: {reason}") from error
    return world


def read(path: str | Path) -> dict[str, Any]:
    """The plain contents of a checkpoint file that ``jepa fit`` wrote; tensors stay on the CPU."""
    if not Path(path).is_file():
        raise InputError(f"no checkpoint at {path}; expected a file that `jepa fit` wrote, e.g. runs/NAME/last.ckpt")
    checkpoint = unpickle(path)
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
