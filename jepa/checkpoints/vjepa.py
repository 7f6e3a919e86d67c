"""The published weights of V-JEPA and V-JEPA 2: their names and ours, both ways.

A state dict is that of an encoder or of a predictor, as it lies in the releases under ``encoder``, ``target_encoder``
and ``predictor``. Sizes are read from the shapes; heads, frame size and the form of the positions leave no trace in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from jepa.checkpoints.keys import Rules, State, count, fill, rename, shape_of
from jepa.errors import InputError
from jepa.models.masked import MaskPredictor
from jepa.models.positions import Form, Grid
from jepa.models.video import VideoViT

log = logging.getLogger(__name__)

PREFIXES = ("module.", "backbone.")  # of DDP and of the wrapper that loops over masks
WHAT = "V-JEPA"
_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
# published -> ours, # for a number; each has a weight and a bias
ENCODER = {
    "patch_embed.proj": "patch_embed",
    **{f"blocks.#.{theirs}": f"blocks.#.{ours}" for theirs, ours in _BLOCK.items()},
    "norm": "final_norm",
}
PREDICTOR = {
    "predictor_embed": "embed",
    **{f"predictor_blocks.#.{theirs}": f"blocks.#.{ours}" for theirs, ours in _BLOCK.items()},
    "predictor_norm": "final_norm",
    "predictor_proj": "proj",
}
# one tensor each: added positions [1,N,width] under both names of a state dict, mask tokens [1,1,width] by number
_TABLE, _TOKEN = "positions.table", "mask_tokens"
_TOKENS = (rf"{_TOKEN}\.(\d+)", rf"{_TOKEN}.\1")


def encoder_from_published(
    state: State, heads: int, size: int, frames: int, positions: Form
) -> tuple[VideoViT, list[str]]:
    """The encoder of a published state dict, and the keys that it has no use for.

    Args:
        state: as published.
        heads: attention heads (16 in ViT-L and ViT-H, 22 in ViT-g).
        size: height and width of a frame in pixels.
        frames: of the longest video.
        positions: "sincos_uniform" in V-JEPA, "rotary_tiled" in V-JEPA 2.

    Raises:
        InputError: a key is unknown or missing, or a shape does not fit.
    """
    ours, leftovers = _translate(state, positions, _rules(ENCODER), "pos_embed")
    kernel = shape_of(ours, "patch_embed.weight", WHAT)
    if len(kernel) != 5:
        raise InputError(
            f"the patch embedding of the state dict has shape {tuple(kernel)}, expected the [D,3,frames,patch,patch] "
            "of a video encoder; give one of V-JEPA or V-JEPA 2"
        )
    dim, _, tubelet, patch, _ = kernel
    encoder = VideoViT(size, frames, tubelet, patch, dim, count(ours, "blocks."), heads, _ratio(ours), positions)
    fill(encoder, ours, f"a {WHAT} encoder")
    return encoder, leftovers


def predictor_from_published(
    state: State, heads: int, grid: Grid, positions: Form
) -> tuple[MaskPredictor, list[str]]:
    """The predictor of a published state dict, and the keys that it has no use for.

    Args:
        state: as published.
        heads: attention heads.
        grid: tubelets, rows and columns of the longest video.
        positions: as the encoder's.

    Raises:
        InputError: a key is unknown or missing, or a shape does not fit.
    """
    ours, leftovers = _translate(state, positions, [*_rules(PREDICTOR), _TOKENS], "predictor_pos_embed")
    names = [f"{_TOKEN}.{number}" for number in range(max(1, count(ours, f"{_TOKEN}.")))]
    if missing := [name for name in names if name not in ours]:
        raise InputError(f"the state dict of a V-JEPA predictor lacks {missing[0]}; give that of the whole model")
    tokens = [ours.pop(name) for name in names]
    width, dim = shape_of(ours, "embed.weight", WHAT)
    depth = count(ours, "blocks.")
    predictor = MaskPredictor(dim, grid, len(tokens), width, depth, heads, _ratio(ours), positions)
    fill(predictor, ours | {_TOKEN: torch.cat(tokens).flatten(1)}, f"a {WHAT} predictor")
    return predictor, leftovers


def encoder_to_published(encoder: VideoViT) -> dict[str, Tensor]:
    """The published state dict of an encoder, without prefixes."""
    rules = [*_rules({ours: theirs for theirs, ours in ENCODER.items()}), (_TABLE, "pos_embed")]
    return rename(encoder.state_dict(), rules, (), (), WHAT)[0]


def predictor_to_published(predictor: MaskPredictor) -> dict[str, Tensor]:
    """The published state dict of a predictor, without prefixes."""
    state = predictor.state_dict()
    tokens = {f"{_TOKEN}.{number}": token.view(1, 1, -1) for number, token in enumerate(state.pop(_TOKEN))}
    rules = [*_rules({ours: theirs for theirs, ours in PREDICTOR.items()}), (_TABLE, "predictor_pos_embed")]
    return rename(state, rules, (), (), WHAT)[0] | tokens


def _rules(names: Mapping[str, str]) -> list[tuple[str, str]]:
    def pattern(name: str) -> str:
        return name.replace(".", r"\.").replace("#", r"(?P<number>\d+)") + r"\.(?P<kind>weight|bias)"

    return [(pattern(old), new.replace("#", r"\g<number>") + r".\g<kind>") for old, new in names.items()]


def _translate(state: State, positions: Form, rules: Rules, table: str) -> tuple[dict[str, Tensor], list[str]]:
    """Our names; ``table`` is that of added positions, which some releases with rotary ones store and do not use."""
    added = positions.startswith("sincos")
    rules, unused = ([*rules, (table, _TABLE)], ()) if added else (rules, (table,))
    ours, leftovers = rename(state, rules, unused, PREFIXES, WHAT)
    log.info("%d tensors of %s, left over: %s", len(ours), WHAT, ", ".join(leftovers) or "none")
    return ours, leftovers


def _ratio(ours: State) -> float:
    """Hidden width of the feed-forward layers over their width."""
    hidden, width = shape_of(ours, "blocks.0.mlp.0.weight", WHAT)
    return hidden / width
