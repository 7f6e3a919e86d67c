"""Files of published weights as models: what a file is, what it holds, and what leaves no trace in it.

Read are the official files of I-JEPA, V-JEPA, V-JEPA 2 and V-JEPA 2.1 (``encoder``, ``predictor``, ``target_encoder``,
``ema_encoder``), bare state dicts of an encoder, V-JEPA 2 in the layout of HF transformers, and attentive probes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.checkpoints import hf
from jepa.checkpoints.attentive import Probe, is_probe, probe_from_published
from jepa.checkpoints.keys import State, bare, fill, read_tensors
from jepa.checkpoints.sizes import Sizes, complete
from jepa.checkpoints.vjepa import encoder_like, predictor_like, translate_encoder, translate_predictor
from jepa.errors import InputError
from jepa.models.attentive import NORM_EPS
from jepa.models.frozen import FrozenEncoder, frame_specs
from jepa.models.masked import MaskedJEPA
from jepa.models.targets import EMA, Online
from jepa.models.video import VideoViT

log = logging.getLogger(__name__)

Which = Literal["target", "context"]

ENCODERS = {"encoder": "context", "ema_encoder": "target", "target_encoder": "target"}  # the last one counts
UNNAMED = "either"  # the role of an encoder of which a file does not say whether it is the context's or the target's
PREDICTOR, PROBES, SIZES = "predictor", ("classifiers", "classifier"), "sizes"
OTHERS = {  # keys that tell published weights which other functions read
    "action_encoder.weight": "V-JEPA 2-AC: jepa.checkpoints.vjepa2_ac.load_vjepa2_ac reads it",
    "action_encoder.patch_embed.weight": "LeWM: jepa.checkpoints.lewm.load_lewm reads it",
}


@dataclass
class Contents:
    """What a file holds, by official names without prefixes."""

    encoders: dict[str, State] = field(default_factory=dict)  # by role: "context", "target" or UNNAMED
    names: dict[str, str] = field(default_factory=dict)  # the entries of the file that these are, by role
    predictor: State | None = None
    probes: list[State] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    sizes: Sizes = Sizes()
    eps: float = NORM_EPS  # of the probes' layer norms


def is_published(held: Any) -> bool:
    """Whether what torch.load gave may be published weights."""
    if not isinstance(held, Mapping):
        return False
    return _is_state(held) or any(name in held for name in (*ENCODERS, PREDICTOR, *PROBES))


def open_published(path: str | Path, held: Mapping[str, Any] | None = None) -> Contents:
    """Read a file, or a folder of transformers, without running what it brings.

    Args:
        path: the file or folder.
        held: what it holds, where it was read before.

    Raises:
        InputError: it holds nothing that is known here.
    """
    held = read_tensors(path) if held is None else held
    if strange := [name for name in held if not isinstance(name, str)]:
        raise InputError(f"{path} has {strange[0]!r} among its names, which are text in a published file; give one")
    if hf.is_hf(held):
        return _open_hf(Path(path), held)
    if any(name in held for name in (*ENCODERS, PREDICTOR, *PROBES)):
        return _open_official(path, held)
    return _open_bare(path, held)


def _open_hf(path: Path, held: State) -> Contents:
    config = _read_json((path if path.is_dir() else path.parent) / "config.json")
    parts = hf.to_official(held)
    hf.check_config(config, parts["encoder"])
    probes = [parts["probe"]] if "probe" in parts else []
    return Contents(
        {UNNAMED: parts["encoder"]},
        predictor=parts.get("predictor"),
        probes=probes,
        sizes=hf.sizes_of(config),
        eps=hf.EPS,
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A model's config.json; nothing where there is none, or that of another model."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); correct it, or load the weights from another folder") from error
    return config if isinstance(config, dict) and config.get("model_type") == "vjepa2" else {}


def _open_official(path: str | Path, held: Mapping[str, Any]) -> Contents:
    """Weights by name, beside what training needs to go on (optimiser, scaler, epoch), which is left over."""
    contents = Contents()
    for name, role in ENCODERS.items():
        if name in held:
            contents.leftovers += [contents.names[role]] if role in contents.names else []
            contents.encoders[role], contents.names[role] = bare(_state(path, name, held[name])), name
    if PREDICTOR in held:
        contents.predictor = bare(_state(path, PREDICTOR, held[PREDICTOR]))
        _refuse_others(path, contents.predictor)
    for name in PROBES:
        states = held.get(name, [])
        states = states if isinstance(states, list) else [states]
        contents.probes += [bare(_state(path, name, state)) for state in states]
    if isinstance(about := held.get(SIZES), Mapping):
        contents.sizes = Sizes.from_dict(about)
    known = {*ENCODERS, PREDICTOR, *PROBES, SIZES}
    contents.leftovers += [name for name in held if name not in known]
    if weights := [name for name in held if name not in known and _is_state(held[name])]:
        raise InputError(
            f"{path} holds weights under {weights[0]!r}, which no published model has; known are {', '.join(known)}"
        )
    return contents


def _open_bare(path: str | Path, held: Mapping[str, Any]) -> Contents:
    """One state dict, or several whose keys begin with the names of the official entries."""
    if not _is_state(held):
        raise InputError(
            f"{path} holds no weights of a published model; expected entries such as {', '.join(ENCODERS)}, or a state "
            "dict"
        )
    state = bare(held)
    _refuse_others(path, state)
    if is_probe(state):
        return Contents(probes=[state])
    if "patch_embed.proj.weight" in state:
        return Contents({UNNAMED: state})
    nested: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        nested.setdefault(part, {})[rest] = value
    if not set(nested) <= {*ENCODERS, PREDICTOR} or not set(nested) & set(ENCODERS):
        raise InputError(
            f"{path} is no state dict of a published model: its keys are {', '.join(list(state)[:3])}, ...; known are "
            "those of I-JEPA, V-JEPA, V-JEPA 2, V-JEPA 2.1 and of attentive probes"
        )
    return _open_official(path, nested)


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items())


def _state(path: str | Path, name: str, value: Any) -> State:
    if not _is_state(value):
        raise InputError(f"{path} holds no state dict under {name!r}, from names to tensors; give a published file")
    return value


def _refuse_others(path: str | Path, state: State) -> None:
    for key, advice in OTHERS.items():
        if key in state:
            raise InputError(f"{path} holds weights of {advice}")


def probe_of(contents: Contents, number: int, heads: int | None, name: str) -> Probe:
    """One of the probes of a file; what else the file holds is listed in its ``leftovers``.

    Raises:
        InputError: there is no such probe, or its heads must be given.
    """
    if not 0 <= number < len(contents.probes):
        raise InputError(f"probe {number} was asked of a file that holds {len(contents.probes)}; count from 0")
    if len(contents.probes) > 1:
        log.info("probe %d of the %d in the file", number, len(contents.probes))
    contents.sizes.check()
    heads = contents.sizes.heads if heads is None else heads  # transformers gives the probe as many as the encoder
    probe = probe_from_published(contents.probes[number], heads, contents.sizes.eps or contents.eps)
    others = [f"probe {other}" for other in range(len(contents.probes)) if other != number]
    model = [contents.names.get(role, "encoder") for role in contents.encoders]
    model += [PREDICTOR] if contents.predictor is not None else []
    return _with_leftovers(probe, [*contents.leftovers, *model, *others], name)


def model_of(contents: Contents, which: Which, given: Sizes, untrained: bool, name: str) -> MaskedJEPA | FrozenEncoder:
    """The masked model of a file, or its encoder alone where there is no predictor.

    Args:
        contents: of :func:`open_published`.
        which: the encoder that embeds: the target's, or the context's.
        given: sizes that the file does not say.
        untrained: keep the random weights of the same architecture (seed 0).
        name: of the file, for messages; it may say the frame size.

    Raises:
        InputError: the file holds no encoder, or not the one that was asked for; a key is unknown or missing; sizes
            must be given.
    """
    if not contents.encoders:
        raise InputError(f"{name} holds no encoder; give a file of the whole model")
    if which == "context" and contents.encoders.keys() == {"target"}:
        raise InputError(f"{name} holds no context encoder, only that of the target; set which to target")
    if which not in contents.encoders:
        log.info("%s holds one encoder, which is used", name)
    role = which if which in contents.encoders else next(iter(contents.encoders))
    chosen = contents.encoders[role]
    sizes = complete(given.over(contents.sizes), chosen, contents.predictor, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, encoders = _fresh(contents, chosen, sizes)
    if isinstance(model, MaskedJEPA):
        model.reads = which
        model.bind(frame_specs(*sizes.size))
    leftovers = _fill(model, encoders, contents.predictor, sizes, untrained)
    if len(encoders) == 1:
        model.role = role  # of its only encoder, which is written under the name of that
        leftovers += [contents.names[other] for other in contents.encoders if other != role]
    return _with_leftovers(model, [*contents.leftovers, *(["probe"] if contents.probes else []), *leftovers], name)


def _with_leftovers(model: Any, leftovers: list[str], name: str) -> Any:
    model.leftovers = leftovers
    if leftovers:
        log.info("%s: left over are %s", name, ", ".join(leftovers))
    return model


def _fresh(contents: Contents, chosen: State, sizes: Sizes) -> tuple[MaskedJEPA | FrozenEncoder, dict[str, State]]:
    """The model with random weights, and the states of its encoders by their names in it."""
    if contents.predictor is None:
        return FrozenEncoder(_encoder(chosen, sizes)), {"encoder": chosen}
    context = contents.encoders.get("context", chosen)
    encoder = _encoder(context, sizes)
    ours, _ = translate_predictor(contents.predictor, sizes.predictor_form)
    predictor = predictor_like(ours, sizes.predictor_heads, encoder.positions.grid, sizes.predictor_form)
    if (predictor.out, predictor.levels) != (encoder.width, encoder.width // encoder.dim):
        log.info("the predictor forecasts the %d dimensions of a teacher that the file does not hold", predictor.out)
        return FrozenEncoder(encoder, predictor), {"encoder": chosen}
    states, target = {"encoder": context}, Online(norm=True, stop_gradient=True)  # one encoder is both at once
    if len(contents.encoders) == 2:
        states["target.teacher"], target = contents.encoders["target"], EMA()
    return MaskedJEPA(encoder, predictor, target), states


def _encoder(state: State, sizes: Sizes) -> VideoViT:
    return encoder_like(translate_encoder(state, sizes.positions)[0], sizes)


def _fill(
    model: nn.Module, encoders: Mapping[str, State], predictor: State | None, sizes: Sizes, untrained: bool
) -> list[str]:
    """Load the weights, unless they are not wanted, and return the keys that nothing needs."""
    left: list[str] = []
    parts = {name: translate_encoder(state, sizes.positions) for name, state in encoders.items()}
    if predictor is not None:
        parts["predictor"] = translate_predictor(predictor, sizes.predictor_form)
    for name, (ours, leftovers) in parts.items():
        left += [f"{name}: {key}" for key in leftovers]
        if not untrained:
            fill(model.get_submodule(name), ours, f"a {sizes.family} {name}")
    return left
