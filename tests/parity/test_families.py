"""LeWM and V-JEPA 2-AC against the published implementations' numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from jepa.models.layers import layer_norm
from jepa.models.vjepa2_ac import PosePredictor
from tools.parity import LIMIT, differences

FIXTURES = {name: Path(__file__).with_name(f"{name}_tiny.safetensors") for name in ("lewm", "vjepa2_ac")}
FAULTS = {
    "lewm": (
        "model.encoder.layers.1.attention.k_proj.weight",
        "model.projector.net.1.running_mean",
        "model.predictor.pos_embedding",
        "model.predictor.transformer.layers.0.attn.norm.weight",
        "model.pred_proj.net.3.bias",
        "model.action_encoder.patch_embed.weight",
        "plan_rollout",
    ),
    "vjepa2_ac": (
        "predictor.state_encoder.weight",
        "predictor.action_encoder.bias",
        "predictor.predictor_blocks.1.attn.qkv.weight",
        "predictor.predictor_norm.bias",
        "rollout",
    ),
}


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def equal(path):
    return all(value < LIMIT for value in differences(path).values())


@pytest.mark.parametrize("name", FIXTURES)
def test_parity(name):
    assert equal(FIXTURES[name])


@pytest.mark.parametrize(("name", "tensor"), [(name, tensor) for name in FAULTS for tensor in FAULTS[name]])
def test_a_perturbed_tensor_fails(name, tensor, tmp_path):
    tensors, about = read(FIXTURES[name])
    tensors[tensor] = tensors[tensor] + 0.01 * torch.randn_like(tensors[tensor])
    save_file(tensors, tmp_path / "perturbed.safetensors", about)
    assert not equal(tmp_path / "perturbed.safetensors")


PUBLISHED = (
    *(("conditions.action.", "action_encoder."), ("conditions.pose.", "state_encoder.")),
    *(("conditions.camera.", "extrinsics_encoder."), ("mlp.0.", "mlp.fc1."), ("mlp.2.", "mlp.fc2.")),
    *(("embed.", "predictor_embed."), ("blocks.", "predictor_blocks."), ("final_norm.", "predictor_norm.")),
    ("project.", "predictor_proj."),
)


@torch.no_grad()
def test_other_sizes_and_the_cameras_pose(tmp_path):
    """A fixture that our own predictor wrote by full recomputes: every size is read from the file."""
    predictor = PosePredictor(20, 30, 3, 3, (3, 3), 2.0, camera=6, norm=False)
    predictor.bind(5, 4 + 6)
    state = {}
    for key, value in predictor.state_dict().items():
        for ours, theirs in PUBLISHED:
            if ours in key and theirs not in key:
                key = key.replace(ours, theirs)
        state[f"predictor.{key}"] = value
    z, action, pose, camera = (torch.randn(2, 4, *shape) for shape in ((9, 20), (5,), (4,), (6,)))
    poses = torch.cat([pose, camera], -1)
    forced, frames = predictor(z, action, poses), layer_norm(z[:, :1])
    predictor.norm = True
    for t in range(1, 5):
        frames = torch.cat([frames, predictor(frames, action[:, :t], poses[:, :t])[:, -1:]], 1)
    given = {"latents": z.flatten(1, 2), "actions": action, "states": pose, "extrinsics": camera}
    made = {"teacher_forced": forced.flatten(1, 2), "rollout": frames.flatten(1, 2)}
    about = {"img_size": 48, "patch_size": 16, "num_heads": 3, "use_extrinsics": True}
    path = tmp_path / "vjepa2_ac.safetensors"
    save_file(state | given | made, path, {"config": json.dumps(about)})
    assert equal(path)
