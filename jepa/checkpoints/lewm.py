"""Published LeWM weights as our parts."""

from __future__ import annotations

import logging
import math
import re

import torch
from torch import Tensor

from jepa.checkpoints.keys import State, count, fill, read_tensors, rename, same_shape, shape_of
from jepa.errors import InputError
from jepa.models.lewm import ClassTokenViT, WindowPredictor
from jepa.models.targets import Online
from jepa.models.world import WorldModel
from jepa.schema import Specs

log = logging.getLogger(__name__)

_VIT, _OUR_VIT = r"encoder\.(?:layers|encoder\.layer)\.(\d+)\.", r"encoder.blocks.\1."
_BLOCK, _OUR_BLOCK = r"predictor\.transformer\.layers\.(\d+)\.", r"predictor.blocks.\1."
RULES = (
    (r"encoder\.embeddings\.cls_token", "encoder.class_token"),
    (r"encoder\.embeddings\.position_embeddings", "encoder.position"),
    (r"encoder\.embeddings\.patch_embeddings\.projection\.(\w+)", r"encoder.patch_embed.\1"),
    (r"encoder\.layernorm\.(\w+)", r"encoder.final_norm.\1"),
    # transformers spells its ViT in two ways: version 5, and before
    (_VIT + r"layernorm_before\.(\w+)", _OUR_VIT + r"norm1.\2"),
    (_VIT + r"layernorm_after\.(\w+)", _OUR_VIT + r"norm2.\2"),
    (_VIT + r"attention\.([qkv])_proj\.(\w+)", _OUR_VIT + r"attn.\2.\3"),
    (_VIT + r"attention\.attention\.([qkv])(?:uery|ey|alue)\.(\w+)", _OUR_VIT + r"attn.\2.\3"),
    (_VIT + r"attention\.(?:o_proj|output\.dense)\.(\w+)", _OUR_VIT + r"attn.proj.\2"),
    (_VIT + r"(?:mlp\.fc1|intermediate\.dense)\.(\w+)", _OUR_VIT + r"mlp.0.\2"),
    (_VIT + r"(?:mlp\.fc2|output\.dense)\.(\w+)", _OUR_VIT + r"mlp.2.\2"),
    (r"projector\.net\.(\d+\.\w+)", r"encoder.projector.\1"),
    (r"action_encoder\.patch_embed\.(\w+)", r"predictor.condition.0.\1"),
    (r"action_encoder\.embed\.0\.(\w+)", r"predictor.condition.1.\1"),
    (r"action_encoder\.embed\.2\.(\w+)", r"predictor.condition.3.\1"),
    (r"predictor\.pos_embedding", "predictor.position"),
    (r"predictor\.transformer\.norm\.(\w+)", r"predictor.final_norm.\1"),
    (_BLOCK + r"adaLN_modulation\.1\.(\w+)", _OUR_BLOCK + r"modulation.1.\2"),
    (_BLOCK + r"attn\.norm\.(\w+)", _OUR_BLOCK + r"attn_norm.\2"),
    (_BLOCK + r"attn\.to_qkv\.(\w+)", _OUR_BLOCK + r"qkv.\2"),
    (_BLOCK + r"attn\.to_out\.0\.(\w+)", _OUR_BLOCK + r"proj.0.\2"),
    (_BLOCK + r"mlp\.net\.(\d+\.\w+)", _OUR_BLOCK + r"mlp.\2"),
    (r"pred_proj\.net\.(\d+\.\w+)", r"predictor.projector.\1"),
)
UNUSED = (r"encoder\.pooler\..+",)  # transformers adds a pooler, which LeWM does not read


def translate(state: State) -> tuple[dict[str, Tensor], list[str]]:
    """A published state dict -> that of our world model with an online target, and the keys left over.

    Raises:
        InputError: keys that are not LeWM's.
    """
    ours, leftovers = rename(state, RULES, UNUSED, ("model.",), "LeWM")
    for key in [key for key in ours if re.fullmatch(r"encoder\.blocks\.\d+\.attn\.q\.\w+", key)]:
        parts = [key.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        same_shape(ours, parts, "LeWM")
        ours[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([ours.pop(part) for part in parts])
    convolution = "predictor.condition.0.weight"
    shape_of(ours, convolution, "LeWM", axes=3)
    ours[convolution] = ours[convolution].squeeze(-1)  # over one step: a linear map
    return ours, leftovers


def parts(state: State, heads: int = 3, predictor_heads: int = 16) -> tuple[ClassTokenViT, WindowPredictor]:
    """An encoder and a bound predictor of the sizes that a translated state dict has; heads leave no trace in it."""

    def shape(key: str, axes: int = 2) -> torch.Size:
        return shape_of(state, key, "LeWM", axes)

    width, _, patch, _ = shape("encoder.patch_embed.weight", 4)
    dim, hidden = shape("encoder.projector.3.weight")
    encoder = ClassTokenViT(
        dim=dim,
        size=patch * math.isqrt(shape("encoder.position", 3)[1] - 1),
        patch=patch,
        width=width,
        depth=count(state, "encoder.blocks."),
        heads=heads,
        mlp_ratio=shape("encoder.blocks.0.mlp.0.weight")[0] / width,
        hidden=hidden,
    )
    inner = shape("predictor.blocks.0.qkv.weight")[0] // 3
    if inner % predictor_heads:
        raise InputError(f"predictor_heads was given {predictor_heads}, which does not divide {inner}")
    smooth, action = shape("predictor.condition.0.weight")
    predictor = WindowPredictor(
        dim=dim,
        width=shape("predictor.position", 3)[2],
        depth=count(state, "predictor.blocks."),
        heads=predictor_heads,
        head=inner // predictor_heads,
        window=shape("predictor.position", 3)[1],
        hidden=shape("predictor.blocks.0.mlp.1.weight")[0],
        smooth=smooth,
        projector_hidden=shape("predictor.projector.0.weight")[0],
    )
    predictor.bind(action)
    return encoder, predictor


def build(state: State, heads: int = 3, predictor_heads: int = 16) -> WorldModel:
    """The world model, in evaluation mode, of a published state dict. ``bind`` nothing: give it its ``specs``."""
    ours, leftovers = translate(state)
    if leftovers:
        log.info("LeWM does not use %d keys of the state dict: %s", len(leftovers), ", ".join(leftovers))
    world = WorldModel(*parts(ours, heads, predictor_heads), Online())
    fill(world, ours, "LeWM")
    return world.eval().requires_grad_(False)


def load_lewm(path: str, specs: Specs, heads: int = 3, predictor_heads: int = 16) -> WorldModel:
    """A published LeWM world model, ready to plan with.

    Args:
        path: its state dict (.pt or .safetensors).
        specs: the actions (with the statistics that normalised them and the frame skip as block), frames and
            environment that it was trained on: the published file does not say.
        heads: attention heads of the encoder.
        predictor_heads: attention heads of the predictor.

    Raises:
        InputError: the file is no LeWM state dict, or has actions or frames of other sizes than the specs.
    """
    world = build(read_tensors(path), heads, predictor_heads)
    width, size = world.predictor.condition[0].in_features, world.encoder.size
    given = (specs.action.width, specs.observation.height, specs.observation.width)
    if given != (width, size, size):
        raise InputError(
            f"{path} was trained on actions of width {width} and frames of {size}x{size} pixels, the specs say "
            f"{given[0]} and {given[1]}x{given[2]}; give the specs of its data"
        )
    world.specs = specs
    return world
