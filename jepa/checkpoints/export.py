"""Models as published files: the official layout, and that of HF transformers, each written whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import save_file
from torch import Tensor, nn

from jepa.checkpoints import hf
from jepa.checkpoints.attentive import probe_to_published
from jepa.checkpoints.io import save, whole
from jepa.checkpoints.published import UNNAMED, Which
from jepa.checkpoints.sizes import POSITIONS, Sizes
from jepa.checkpoints.vjepa import encoder_to_published, predictor_to_published, published_levels
from jepa.errors import InputError, check_choice
from jepa.models.attentive import ActionAnticipator, AttentiveClassifier
from jepa.models.frozen import FrozenEncoder
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.masked import MaskedJEPA
from jepa.models.video import VideoViT

log = logging.getLogger(__name__)

Layout = Literal["official", "hf"]
ADVICE = "free some space and export again"


def write_official(model: nn.Module, path: Path) -> None:
    """Write a file of torch.save as the releases have it, with ``sizes`` beside the weights, which tell the rest.

    A masked model becomes ``encoder``, ``predictor`` and ``target_encoder``, an attentive probe ``classifiers``. An
    encoder alone becomes the first and the last, as it is both; one that was read from a file that held it as either of
    them becomes that. Keys begin with module.backbone., as those of the releases; images' and probes' with module.
    alone.

    Raises:
        InputError: the model is none of the published families.
    """
    with whole(path, ADVICE) as partial:
        save(official(model), partial)


def official(model: nn.Module) -> dict[str, Any]:
    """What :func:`write_official` writes: tensors and plain values."""
    if isinstance(model, (AttentiveClassifier, ActionAnticipator)):
        attention = model.pooler.cross_attention_block
        sizes = Sizes(heads=attention.xattn.heads, eps=attention.norm1.eps)
        return {"classifiers": [_prefixed(probe_to_published(model), "module.")], "sizes": sizes.to_dict()}
    encoder = _video_encoder(model)
    predictor = getattr(model, "predictor", None)
    sizes = _sizes(encoder, predictor)
    prefix = "module." if sizes.positions == "sincos_2d" else "module.backbone."
    role, held = getattr(model, "role", UNNAMED), {}
    if role != "target":
        held["encoder"] = _prefixed(encoder_to_published(encoder), prefix)
    if predictor is not None:
        held["predictor"] = _prefixed(predictor_to_published(predictor), prefix)
    if role != "context":
        held["target_encoder"] = _prefixed(encoder_to_published(_reader(model)), prefix)
    own = {name: getattr(sizes, name) for name in ("predictor_positions", "levels", "norm")}
    own["positions"] = sizes.positions if sizes.family is None else None
    if said := [f"{name}={value}" for name, value in own.items() if value is not None]:
        log.warning("no published family has %s here: only jepa reads it from the file's sizes", ", ".join(said))
    return held | {"sizes": sizes.to_dict()}


def write_hf(model: nn.Module, path: Path, which: Which = "target") -> None:
    """Write safetensors and, beside them, config.json, as ``VJEPA2Model.from_pretrained`` of transformers reads them.

    Args:
        model: a masked model with tiled rotary positions.
        path: a .safetensors file, or a folder for model.safetensors.
        which: the encoder: that layout has but one.

    Raises:
        InputError: the model has what that layout has not, or another model's config.json lies there.
    """
    check_choice("which", which, get_args(Which))
    if not isinstance(model, MaskedJEPA):
        raise InputError(f"transformers' layout holds an encoder and a predictor, was given a {_named(model)}")
    encoder = _video_encoder(model) if which == "context" else _reader(model)
    config = hf.config_of(encoder, model.predictor)
    state = hf.from_official(encoder_to_published(encoder), predictor_to_published(model.predictor))
    path = path if path.suffix == ".safetensors" else path / "model.safetensors"
    about = path.with_name("config.json")
    text = json.dumps(config, indent=2) + "\n"
    _refuse_other(about, text)
    with whole(path, ADVICE) as partial:
        # tensors that share memory cannot be told apart in this format
        made = {name: value.contiguous().clone() for name, value in state.items()}
        partial.touch()
        mode = partial.stat().st_mode  # as every new file has it; safetensors lets nobody else read its own
        save_file(made, partial, {"format": "pt"})
        partial.chmod(mode)
        _flush(partial)
    with whole(about, ADVICE) as partial:
        partial.write_text(text)
        _flush(partial)


def _refuse_other(path: Path, text: str) -> None:
    """InputError where a file with another text lies: the weights beside it are read by what it says."""
    try:
        there = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; name another folder") from error
    if there is not None and there != text.encode():
        raise InputError(f"{path} describes another model, whose weights it would no longer fit; name another folder")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.detach().cpu() for name, value in state.items()}


def _named(model: nn.Module) -> str:
    inner = getattr(model, "encoder", None)
    return type(model).__name__ + (f" with a {type(inner).__name__}" if inner is not None else "")


def _video_encoder(model: nn.Module) -> VideoViT:
    encoder = getattr(model, "encoder", None)
    if not isinstance(model, (MaskedJEPA, FrozenEncoder)) or not isinstance(encoder, VideoViT):
        raise InputError(
            f"a {_named(model)} has no published layout; export a MaskedJEPA, a FrozenEncoder of a VideoViT, or a probe"
        )
    return encoder


def _reader(model: nn.Module) -> VideoViT:
    """The encoder that a finished model is read through: that of an EMA target, else the only one that learned."""
    encoder = _video_encoder(model)
    return model.target.reader(encoder) if isinstance(model, MaskedJEPA) else encoder


def _sizes(encoder: VideoViT, predictor: MaskPredictor | None) -> Sizes:
    form = encoder.positions.form
    depth, rows, columns = encoder.positions.grid
    families = {positions: family for family, positions in POSITIONS.items()}
    levels, forecasts = encoder.levels, form if predictor is None else predictor.positions.form
    return Sizes(
        family=families.get(form),
        heads=encoder.blocks[0].attn.heads,
        predictor_heads=None if predictor is None else predictor.blocks[0].attn.heads,
        size=(rows * encoder.patch, columns * encoder.patch),
        frames=depth * encoder.tubelet,
        positions=form,
        predictor_positions=None if forecasts == form else forecasts,
        levels=None if not levels or levels == published_levels(encoder.depth, len(levels)) else levels,
        norm=encoder.norm or None,
    )
