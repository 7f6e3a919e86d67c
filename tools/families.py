"""The fixtures of published world models: what our parts make of their weights and inputs, beside what those made.

A kind takes the inputs out of a fixture's tensors, leaves the outputs, and returns ours by the same names. All sizes
come from shapes; what shapes do not say (heads, grids) from the fixture's ``config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jepa.checkpoints.lewm import build as build_lewm
from jepa.checkpoints.vjepa2_ac import build as build_vjepa2_ac
from jepa.models.layers import layer_norm
from jepa.schema import ActionSpec, ObservationSpec, Specs

Tensors = dict[str, Tensor]
Config = Mapping[str, Any]


def lewm(tensors: Tensors, config: Config) -> Tensors:
    """Encoder, action embedding, predictor and plan rollout. Pixels [B,T,3,H,W] and actions are normalised."""
    about = config["config"]
    world = build_lewm(part(tensors, "model."), about["heads"], about["predictor_heads"])
    plans, action = tensors.pop("plan_candidates"), tensors.pop("actions")
    zero, one = ((value,) * action.shape[-1] for value in (0.0, 1.0))
    world.specs = Specs(ActionSpec(zero, one, zero, one), ObservationSpec(world.encoder.size, world.encoder.size))

    def encode(pixels: Tensor) -> Tensor:
        return world.encoder.features(pixels.flatten(0, -4)).unflatten(0, pixels.shape[:-3])

    z, first = encode(tensors.pop("pixels")), encode(tensors.pop("plan_context")).flatten(1, 2)
    past = tensors["teacher_forced"].shape[1]
    forced, rollout = world.predict(z[:, :past], action[:, :past]), world.rollout(first, plans)
    start = first.unsqueeze(1).expand(-1, rollout.shape[1], -1, -1, -1)
    return {
        "latents": z.squeeze(2),
        "action_embeddings": world.predictor.condition(action),
        "teacher_forced": forced.squeeze(2),
        "plan_rollout": torch.cat([start, rollout], dim=2).squeeze(3),
    }


def vjepa2_ac(tensors: Tensors, config: Config) -> Tensors:
    """Teacher forcing on latents [B,T*N,D], and an open loop from the first frame. Poses may include the camera's."""
    about = config["config"]
    rows, columns = (side // about["patch_size"] for side in sides(about["img_size"]))
    camera = about["use_extrinsics"]
    state = part(tensors, "predictor.")
    predictor = build_vjepa2_ac(state, (rows, columns), about["num_heads"], camera, norm=False)
    z, action = tensors.pop("latents").unflatten(1, (-1, rows * columns)), tensors.pop("actions")
    poses = tensors.pop("states")
    poses = torch.cat([poses, tensors.pop("extrinsics")], dim=-1) if camera else poses
    made = {"teacher_forced": predictor(z, action, poses).flatten(1, 2)}

    predictor.norm = True
    cache = predictor.begin(layer_norm(z[:, :1]), action[:, :0], poses[:, :0])
    frames = [cache.pending]
    while len(frames) * rows * columns < tensors["rollout"].shape[1]:
        latent, cache = predictor.step(cache, action[:, cache.time], poses[:, cache.time])
        frames.append(latent)
    return made | {"rollout": torch.cat(frames, dim=1)}


# the output that tells a fixture's kind -> how it is made
KINDS: dict[str, Callable[[Tensors, Config], Tensors]] = {"plan_rollout": lewm, "rollout": vjepa2_ac}


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, which are one number in the fixtures where they are equal."""
    return (size, size) if isinstance(size, int) else tuple(size)


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Take the tensors of one module out."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}
