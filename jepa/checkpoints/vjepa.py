"""The published weights of I-JEPA, V-JEPA, V-JEPA 2 and V-JEPA 2.1: their names and ours, both ways.

A state dict is that of an encoder or of a predictor, as it lies in the releases under ``encoder``, ``target_encoder``
and ``predictor``. What can be read from shapes is; :mod:`jepa.checkpoints.sizes` knows what leaves no trace in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jepa.checkpoints.keys import PREFIXES, Rules, State, count, fill, rename, same_shape, shape_of
from jepa.checkpoints.sizes import Sizes
from jepa.errors import InputError
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.positions import Form, Grid
from jepa.models.video import VideoViT

WHAT = "V-JEPA"
_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_GATED = _BLOCK | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "mlp.fc3": "mlp.fc3"}
# published -> ours, # for a number; each has a weight and a bias
ENCODER = {
    "patch_embed.proj": "patch_embed",
    "norm": "final_norm",
    # V-JEPA 2.1
    "patch_embed_img.proj": "image_patch_embed",
    "norms_block.#": "level_norms.#",
}
PREDICTOR = {
    "predictor_embed": "embed",
    "predictor_norm": "final_norm",
    "predictor_proj": "proj",
    # V-JEPA 2.1
    "predictor_embed.#": "embed.#",
    "predictor_proj_context": "proj_context",
}
# one tensor each: modality embeddings [1,1,width] of V-JEPA 2.1, added positions [1,N,width], mask tokens [1,1,width]
_SINGLE = (("video_mod_embed", "video_embedding"), ("img_mod_embed", "image_embedding"))
_TABLE, _TOKEN = "positions.table", "mask_tokens"
_TOKENS = ((rf"{_TOKEN}\.(\d+)", rf"{_TOKEN}.\1"), ("mask_token", f"{_TOKEN}.0"))  # I-JEPA has one
_UNEVEN = {(48, 4): (11, 23, 37, 47)}  # levels of V-JEPA 2.1's ViT-G; the others are evenly spaced


def encoder_from_published(
    state: State, heads: int, size: int | tuple[int, int], frames: int, positions: Form
) -> tuple[VideoViT, list[str]]:
    """The encoder of a published state dict, and the keys that it has no use for.

    Args:
        state: as published.
        heads: attention heads (16 in ViT-L and ViT-H, 22 in ViT-g).
        size: height and width of a frame in pixels, one number where they are equal.
        frames: of the longest video.
        positions: "sincos_2d" in I-JEPA, "sincos_uniform" in V-JEPA, "rotary_tiled" in V-JEPA 2,
            "rotary_interpolated" in V-JEPA 2.1.

    Raises:
        InputError: a key is unknown or missing, or a shape does not fit.
    """
    ours, leftovers = translate_encoder(state, positions)
    frame = (size, size) if isinstance(size, int) else tuple(size)
    encoder = encoder_like(ours, Sizes(heads=heads, size=frame, frames=frames, positions=positions))
    fill(encoder, ours, f"a {WHAT} encoder")
    return encoder, leftovers


def predictor_from_published(state: State, heads: int, grid: Grid, positions: Form) -> tuple[MaskPredictor, list[str]]:
    """The predictor of a published state dict, and the keys that it has no use for.

    Args:
        state: as published.
        heads: attention heads.
        grid: tubelets, rows and columns of the longest video.
        positions: as the encoder's.

    Raises:
        InputError: a key is unknown or missing, or a shape does not fit.
    """
    ours, leftovers = translate_predictor(state, positions)
    predictor = predictor_like(ours, heads, grid, positions)
    fill(predictor, ours, f"a {WHAT} predictor")
    return predictor, leftovers


def translate_encoder(state: State, positions: Form) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's state dict in our names, and the published keys left over."""
    rules = [*_rules(ENCODER, _blocks("blocks", _is_gated(state))), *_SINGLE]
    ours, leftovers = _translate(state, positions, rules, "pos_embed")
    kernel = ours.get("patch_embed.weight")
    if positions == "sincos_2d" and kernel is not None and kernel.ndim == 4:  # images are tubelets of one frame
        ours["patch_embed.weight"] = kernel.unsqueeze(2)
    return ours, leftovers


def translate_predictor(state: State, positions: Form) -> tuple[dict[str, Tensor], list[str]]:
    """A predictor's state dict in our names, and the published keys left over."""
    rules = [*_rules(PREDICTOR, _blocks("predictor_blocks", _is_gated(state))), *_SINGLE, *_TOKENS]
    ours, leftovers = _translate(state, positions, rules, "predictor_pos_embed")
    names = [f"{_TOKEN}.{number}" for number in range(max(1, count(ours, f"{_TOKEN}.")))]
    if missing := [name for name in names if name not in ours]:
        raise InputError(f"the state dict of a V-JEPA predictor lacks {missing[0]}; give that of the whole model")
    what = "a V-JEPA predictor"
    if (shape := shape_of(ours, names[0], what, axes=3))[:2] != (1, 1):
        raise InputError(f"{names[0]} of {what} has shape {tuple(shape)}, expected [1,1,width]; give a published one")
    same_shape(ours, names, what)
    return ours | {_TOKEN: torch.cat([ours.pop(name) for name in names]).flatten(1)}, leftovers


def encoder_like(ours: State, sizes: Sizes) -> VideoViT:
    """A fresh encoder of the sizes that a translated state dict has."""
    kernel = shape_of(ours, "patch_embed.weight", WHAT)
    if len(kernel) != 5:
        raise InputError(
            f"the patch embedding of the state dict has shape {tuple(kernel)}, expected the [D,3,frames,patch,patch] "
            "of a video encoder; give one of V-JEPA or V-JEPA 2, or the positions of I-JEPA, sincos_2d"
        )
    dim, _, tubelet, patch, _ = kernel
    _check_width(dim, sizes.positions)
    depth, levels = count(ours, "blocks."), count(ours, "level_norms.")
    swiglu, ratio = _feed_forward(ours)
    return VideoViT(
        sizes.size,
        sizes.frames,
        tubelet,
        patch,
        dim,
        depth,
        sizes.heads,
        ratio,
        sizes.positions,
        norm=bool(sizes.norm),
        swiglu=swiglu,
        levels=sizes.levels or _levels(depth, levels),
        images="image_patch_embed.weight" in ours,
    )


def predictor_like(ours: State, heads: int, grid: Grid, positions: Form) -> MaskPredictor:
    """A fresh predictor of the sizes that a translated state dict has."""
    masks, width = shape_of(ours, _TOKEN, WHAT, axes=2)
    mixed = "embed.0.weight" in ours  # several levels
    inner, wide = shape_of(ours, "embed.0.weight" if mixed else "embed.weight", WHAT, axes=2)
    dim = inner if mixed else wide
    _check_width(width, positions)
    swiglu, ratio = _feed_forward(ours)
    return MaskPredictor(
        dim,
        grid,
        masks,
        width,
        count(ours, "blocks."),
        heads,
        ratio,
        positions,
        swiglu=swiglu,
        levels=wide // dim,
        context="proj_context.weight" in ours,
        images="image_embedding" in ours,
        out=shape_of(ours, "proj.weight", WHAT, axes=2)[0],
    )


def encoder_to_published(encoder: VideoViT) -> dict[str, Tensor]:
    """The published state dict of an encoder, without prefixes."""
    state = encoder.state_dict()
    if encoder.positions.form == "sincos_2d":
        state["patch_embed.weight"] = state["patch_embed.weight"].squeeze(2)
    rules = _back(ENCODER, _blocks("blocks", _is_gated(state)), "pos_embed")
    return rename(state, rules, (), (), WHAT)[0]


def predictor_to_published(predictor: MaskPredictor) -> dict[str, Tensor]:
    """The published state dict of a predictor, without prefixes."""
    state = predictor.state_dict()
    tokens = {f"{_TOKEN}.{number}": token.view(1, 1, -1) for number, token in enumerate(state.pop(_TOKEN))}
    if predictor.positions.form == "sincos_2d" and len(tokens) == 1:
        tokens = {"mask_token": tokens.popitem()[1]}
    rules = _back(PREDICTOR, _blocks("predictor_blocks", _is_gated(state)), "predictor_pos_embed")
    return rename(state, rules, (), (), WHAT)[0] | tokens


def _blocks(name: str, gated: bool) -> dict[str, str]:
    parts = _GATED if gated else _BLOCK
    return {f"{name}.#.{theirs}": f"blocks.#.{ours}" for theirs, ours in parts.items()}


def _is_gated(state: State) -> bool:
    return any(".mlp.fc3." in key for key in state)


def _rules(*tables: Mapping[str, str]) -> list[tuple[str, str]]:
    def pattern(name: str) -> str:
        return name.replace(".", r"\.").replace("#", r"(?P<number>\d+)") + r"\.(?P<kind>weight|bias)"

    names = {old: new for table in tables for old, new in table.items()}
    return [(pattern(old), new.replace("#", r"\g<number>") + r".\g<kind>") for old, new in names.items()]


def _back(names: Mapping[str, str], blocks: Mapping[str, str], table: str) -> list[tuple[str, str]]:
    singles = [(ours, theirs) for theirs, ours in _SINGLE]
    return [*_rules({ours: theirs for theirs, ours in (names | blocks).items()}), *singles, (_TABLE, table)]


def _translate(state: State, positions: Form, rules: Rules, table: str) -> tuple[dict[str, Tensor], list[str]]:
    """Our names; ``table`` is that of added positions, which some releases with rotary ones store and do not use."""
    added = positions.startswith("sincos")
    rules, unused = ([*rules, (table, _TABLE)], ()) if added else (rules, (table,))
    return rename(state, rules, unused, PREFIXES, WHAT)


def _check_width(width: int, positions: Form) -> None:
    if positions == "sincos_2d" and width % 4:
        raise InputError(f"the weights are {width} wide, but sincos_2d positions want a multiple of 4; give I-JEPA's")


def _feed_forward(ours: State) -> tuple[bool, float]:
    """Whether feed-forward layers are gated, and their hidden width over the width, before two thirds are taken."""
    if "blocks.0.mlp.fc3.weight" in ours:
        width, hidden = shape_of(ours, "blocks.0.mlp.fc3.weight", WHAT, axes=2)
        return True, 1.5 * hidden / width
    hidden, width = shape_of(ours, "blocks.0.mlp.0.weight", WHAT, axes=2)
    return False, hidden / width


def _levels(depth: int, levels: int) -> tuple[int, ...] | None:
    if levels and depth % levels:
        raise InputError(f"the state dict has {levels} levels in {depth} blocks, expected a divisor; give V-JEPA 2.1's")
    return published_levels(depth, levels)


def published_levels(depth: int, levels: int) -> tuple[int, ...] | None:
    """The numbers of the blocks whose outputs V-JEPA 2.1 trains; None where it has no such number of levels."""
    if not levels or depth % levels:
        return None
    return _UNEVEN.get((depth, levels), tuple(range(depth // levels - 1, depth, depth // levels)))
