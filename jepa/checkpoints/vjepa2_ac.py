"""Published V-JEPA 2-AC predictors as ours."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from jepa.checkpoints.keys import State, count, fill, read_tensors, rename, shape_of
from jepa.errors import InputError
from jepa.models.vjepa2_ac import PosePredictor

log = logging.getLogger(__name__)

_BLOCK, _OUR_BLOCK = r"predictor_blocks\.(\d+)\.", r"blocks.\1."
CAMERA = (r"extrinsics_encoder\.(\w+)", r"conditions.camera.\1")
RULES = (
    (r"predictor_embed\.(\w+)", r"embed.\1"),
    (r"action_encoder\.(\w+)", r"conditions.action.\1"),
    (r"state_encoder\.(\w+)", r"conditions.pose.\1"),
    (_BLOCK + r"((?:norm[12]|attn\.qkv|attn\.proj)\.\w+)", _OUR_BLOCK + r"\2"),
    (_BLOCK + r"mlp\.fc1\.(\w+)", _OUR_BLOCK + r"mlp.0.\2"),
    (_BLOCK + r"mlp\.fc2\.(\w+)", _OUR_BLOCK + r"mlp.2.\2"),
    (r"predictor_norm\.(\w+)", r"final_norm.\1"),
    (r"predictor_proj\.(\w+)", r"project.\1"),
)


def translate(state: State, camera: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """A published predictor's state dict -> ours, and the keys left over.

    Args:
        state: as published; it has an embedding of the camera's pose (extrinsics) whether that was used or not.
        camera: the model was trained with the camera's pose.

    Raises:
        InputError: keys that are not the predictor's.
    """
    rules, unused = ((*RULES, CAMERA), ()) if camera else (RULES, (CAMERA[0],))
    return rename(state, rules, unused, ("module.", "predictor."), "V-JEPA 2-AC")


def build(
    state: State, grid: tuple[int, int] = (16, 16), heads: int = 16, camera: bool = False, norm: bool = True
) -> PosePredictor:
    """The bound predictor, in evaluation mode, of a published state dict; grid and heads leave no trace in it."""
    ours, leftovers = translate(state, camera)
    if leftovers:
        log.info("V-JEPA 2-AC does not use %d keys of the state dict: %s", len(leftovers), ", ".join(leftovers))

    def shape(key: str) -> torch.Size:
        return shape_of(ours, key, "V-JEPA 2-AC", axes=2)

    width, dim = shape("embed.weight")
    camera_width = shape("conditions.camera.weight")[1] if camera else 0
    predictor = PosePredictor(
        dim=dim,
        width=width,
        depth=count(ours, "blocks."),
        heads=heads,
        grid=grid,
        mlp_ratio=shape("blocks.0.mlp.0.weight")[0] / width,
        camera=camera_width,
        norm=norm,
    )
    predictor.bind(shape("conditions.action.weight")[1], shape("conditions.pose.weight")[1] + camera_width)
    fill(predictor, ours, "V-JEPA 2-AC")
    return predictor.eval().requires_grad_(False)


def load_vjepa2_ac(path: str, grid: tuple[int, int] = (16, 16), heads: int = 16, camera: bool = False) -> PosePredictor:
    """The predictor of a published V-JEPA 2-AC checkpoint, e.g. vjepa2-ac-vitg.pt. Its actions and poses are raw.

    Args:
        path: the checkpoint, with its predictor under "predictor", or the predictor's state dict alone.
        grid: rows and columns of patches in a frame.
        heads: attention heads.
        camera: the model was trained with the camera's pose.

    Raises:
        InputError: the file holds no V-JEPA 2-AC predictor.
    """
    held = read_tensors(path)
    state = held.get("predictor", held)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of a predictor; give a published V-JEPA 2-AC checkpoint")
    return build(state, grid, heads, camera)
