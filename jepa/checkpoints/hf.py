"""V-JEPA 2 in the layout of HF transformers: its names and the official ones, both ways, and its config.json.

Sources: the keys of ``VJEPA2Model`` and ``VJEPA2ForVideoClassification`` (transformers 4.53 and later). Queries, keys
and values lie in three tensors there, and in one here. transformers encodes the whole clip and masks what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jepa.checkpoints.keys import State, join, rename, shape_of, split
from jepa.checkpoints.sizes import Sizes
from jepa.errors import InputError
from jepa.models.layers import SwiGLU
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.video import VideoViT

WHAT = "V-JEPA 2 of HF transformers"
EPS = 1e-6  # of all layer norms, the probe's among them
_KIND = r"\.(weight|bias)"
_LAYER = r"layer\.(\d+)\."
_BLOCK_RULES = (  # within encoder and predictor; an early converter wrote attention.attention.*
    (_LAYER + r"(norm[12]|mlp\.fc[12])" + _KIND, r"BLOCKS.\1.\2.\3"),
    (_LAYER + r"attention\.(?:attention\.)?(query|key|value)" + _KIND, r"BLOCKS.\1.attn.\2.\3"),
    (_LAYER + r"attention\.(?:attention\.)?proj" + _KIND, r"BLOCKS.\1.attn.proj.\2"),
)
_ENCODER = (
    (r"embeddings\.patch_embeddings\.proj" + _KIND, r"patch_embed.proj.\1"),
    (r"layernorm" + _KIND, r"norm.\1"),
)
_PREDICTOR = (
    (r"embeddings\.predictor_embeddings" + _KIND, r"predictor_embed.\1"),
    (r"embeddings\.mask_tokens", "mask_tokens"),
    (r"layernorm" + _KIND, r"predictor_norm.\1"),
    (r"proj" + _KIND, r"predictor_proj.\1"),
)
_POOLER = (
    (r"pooler\.query_tokens", "pooler.query_tokens"),
    (r"pooler\.cross_attention_layer\.layer_norm([12])" + _KIND, r"pooler.cross_attention_block.norm\1.\2"),
    (r"pooler\.cross_attention_layer\.cross_attn\.([qkv])_proj" + _KIND, r"pooler.cross_attention_block.xattn.\1.\2"),
    (r"pooler\.cross_attention_layer\.(mlp\.fc[12])" + _KIND, r"pooler.cross_attention_block.\1.\2"),
    (r"pooler\.self_attention_layers\.(\d+)\.layer_norm([12])" + _KIND, r"pooler.blocks.\1.norm\2.\3"),
    (r"pooler\.self_attention_layers\.(\d+)\.self_attn\.([qkv])_proj" + _KIND, r"pooler.blocks.\1.attn.\2.\3"),
    (r"pooler\.self_attention_layers\.(\d+)\.self_attn\.out_proj" + _KIND, r"pooler.blocks.\1.attn.proj.\2"),
    (r"pooler\.self_attention_layers\.(\d+)\.(mlp\.fc[12])" + _KIND, r"pooler.blocks.\1.\2.\3"),
    (r"classifier" + _KIND, r"linear.\1"),
)
_QKV = ("query", "key", "value")


def is_hf(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of transformers."""
    return any("embeddings.patch_embeddings." in key for key in state)


def to_official(state: State) -> dict[str, dict[str, Tensor]]:
    """The state dict of a model, or of one for video classification, as official ones: encoder, predictor, probe.

    Raises:
        InputError: a key that transformers' V-JEPA 2 does not have, or that is there with "vjepa2." before it as well.
    """
    if twice := [key for key in state if f"vjepa2.{key}" in state]:
        raise InputError(
            f"{twice[0]!r} of {WHAT} is there a second time as 'vjepa2.{twice[0]}': these are two models; give one"
        )
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "predictor": {}, "probe": {}}
    for key, value in state.items():
        bare = key.removeprefix("vjepa2.")
        part = bare.split(".")[0]
        if part in ("encoder", "predictor"):
            parts[part][bare.removeprefix(f"{part}.")] = value
        else:
            parts["probe"][bare] = value
    made = {
        "encoder": _joined(parts["encoder"], _ENCODER, "blocks"),
        "predictor": _joined(parts["predictor"], _PREDICTOR, "predictor_blocks"),
        "probe": _probe(parts["probe"]),
    }
    return {name: part for name, part in made.items() if part}


def _joined(state: State, rules: tuple[tuple[str, str], ...], blocks: str) -> dict[str, Tensor]:
    rules = (*rules, *((pattern, new.replace("BLOCKS", blocks)) for pattern, new in _BLOCK_RULES))
    official, _ = rename(state, rules, (), (), WHAT)
    official = join(official, [f"attn.{name}" for name in _QKV], "attn.qkv", WHAT)
    if "mask_tokens" in official:
        shape_of(official, "mask_tokens", WHAT, axes=4)
        tokens = official.pop("mask_tokens")
        official |= {f"mask_tokens.{number}": token for number, token in enumerate(tokens)}
    return official


def _probe(state: State) -> dict[str, Tensor]:
    official, _ = rename(state, _POOLER, (), (), WHAT)
    official = join(official, [f"attn.{letter}" for letter in "qkv"], "attn.qkv", WHAT)
    return join(official, ["xattn.k", "xattn.v"], "xattn.kv", WHAT)


def from_official(encoder: State, predictor: State) -> dict[str, Tensor]:
    """Official state dicts, without prefixes, as one of transformers' VJEPA2Model."""
    tokens = [predictor[f"mask_tokens.{i}"] for i in range(sum(key.startswith("mask_tokens.") for key in predictor))]
    predictor = {key: value for key, value in predictor.items() if not key.startswith("mask_tokens.")}
    parts = {
        "encoder": _split(encoder, "blocks", (("patch_embed.proj", "embeddings.patch_embeddings.proj"),), "norm"),
        "predictor": _split(
            predictor,
            "predictor_blocks",
            (("predictor_embed", "embeddings.predictor_embeddings"), ("predictor_proj", "proj")),
            "predictor_norm",
        ),
    }
    state = {f"{part}.{key}": value for part, found in parts.items() for key, value in found.items()}
    return state | {"predictor.embeddings.mask_tokens": torch.stack(tokens)}


def _split(state: State, blocks: str, names: tuple[tuple[str, str], ...], norm: str) -> dict[str, Tensor]:
    state = split(state, "attn.qkv", [f"attn.{name}" for name in _QKV])
    rules = [
        (rf"{blocks}\.(\d+)\.(norm[12]|mlp\.fc[12])" + _KIND, r"layer.\1.\2.\3"),
        (rf"{blocks}\.(\d+)\.attn\.(\w+)" + _KIND, r"layer.\1.attention.\2.\3"),
        (norm + _KIND, r"layernorm.\1"),
        *((old.replace(".", r"\.") + _KIND, new + r".\1") for old, new in names),
    ]
    return rename(state, rules, (), (), WHAT)[0]


def check_config(config: Mapping[str, Any], encoder: State) -> None:
    """InputError where a config.json is that of other weights than the official encoder's, or of another forward."""
    width = shape_of(encoder, "patch_embed.proj.weight", WHAT, axes=5)[0]
    if (said := config.get("hidden_size", width)) != width:
        raise InputError(
            f"config.json says hidden_size={said!r}, but the weights beside it are {width} wide; put their own "
            "config.json there"
        )
    for name, ours in (("hidden_act", "gelu"), ("layer_norm_eps", EPS)):
        if (said := config.get(name, ours)) != ours:
            raise InputError(f"config.json says {name}={said!r}, but jepa computes {ours} alone; use transformers")


def sizes_of(config: Mapping[str, Any]) -> Sizes:
    """What a config.json says that the weights do not."""
    side = config.get("crop_size")
    return Sizes(
        family="vjepa2",
        heads=config.get("num_attention_heads"),
        predictor_heads=config.get("pred_num_attention_heads"),
        size=None if side is None else (side, side),
        frames=config.get("frames_per_clip"),
    )


def config_of(encoder: VideoViT, predictor: MaskPredictor) -> dict[str, Any]:
    """The config.json with which transformers rebuilds these.

    Raises:
        InputError: the model has what transformers' V-JEPA 2 has not.
    """
    _, rows, columns = encoder.positions.grid
    tubelet, patch = encoder.patch_embed.kernel_size[:2]
    missing = {
        f"positions={encoder.positions.form}": encoder.positions.form != "rotary_tiled",
        "frames that are not square": rows != columns,
        f"positions={predictor.positions.form} in the predictor": predictor.positions.form != encoder.positions.form,
        "gated feed-forward layers": any(isinstance(part.blocks[0].mlp, SwiGLU) for part in (encoder, predictor)),
        "a norm without parameters": encoder.norm,
        "forecasts of the context": predictor.proj_context is not None,
        f"forecasts of {predictor.out} dimensions": predictor.out != encoder.width,
        "several levels": encoder.levels is not None,
        "an embedding of images": encoder.images,
    }
    if reasons := [reason for reason, true in missing.items() if true]:
        raise InputError(
            f"transformers has no V-JEPA 2 with {' and '.join(reasons)}; export with --layout official, which has"
        )
    depth, narrow_depth = len(encoder.blocks), len(predictor.blocks)
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "patch_size": patch,
        "crop_size": rows * patch,
        "frames_per_clip": encoder.frames,
        "tubelet_size": tubelet,
        "hidden_size": encoder.dim,
        "in_chans": 3,
        "num_attention_heads": encoder.blocks[0].attn.heads,
        "num_hidden_layers": depth,
        "mlp_ratio": _ratio(encoder),
        "layer_norm_eps": EPS,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "pred_hidden_size": predictor.mask_tokens.shape[1],
        "pred_num_attention_heads": predictor.blocks[0].attn.heads,
        "pred_num_hidden_layers": narrow_depth,
        "pred_num_mask_tokens": len(predictor.mask_tokens),
        "pred_mlp_ratio": _ratio(predictor),
        "torch_dtype": "float32",
    }


def _ratio(module: VideoViT | MaskPredictor) -> float:
    """The ratio that transformers, which rounds down, makes the hidden width of."""
    hidden, width = module.blocks[0].mlp[0].weight.shape
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
