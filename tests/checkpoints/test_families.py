"""Published LeWM and V-JEPA 2-AC state dicts: what is left over is listed, what is unknown or missing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jepa.checkpoints import lewm, vjepa2_ac
from jepa.errors import InputError
from jepa.models.lewm import ClassTokenViT, WindowPredictor
from jepa.models.targets import Online
from jepa.models.world import WorldModel
from jepa.schema import ActionSpec, ObservationSpec, Sample, Specs

FIXTURES = Path(__file__).parents[1] / "parity"
SPECS = Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (1.0,) * 2, block=2), ObservationSpec(56, 56))
OLDER = (
    *((f"attention.{name[0]}_proj.", f"attention.attention.{name}.") for name in ("query", "key", "value")),
    *(("attention.o_proj.", "attention.output.dense."), ("mlp.fc1.", "intermediate.dense.")),
    *(("mlp.fc2.", "output.dense."), ("encoder.layers.", "encoder.encoder.layer.")),
)


def published(name, prefix):
    tensors = load_file(FIXTURES / f"{name}_tiny.safetensors")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture
def lewm_state():
    return published("lewm", "model.")


@pytest.fixture
def ac_state():
    return published("vjepa2_ac", "predictor.")


def test_lewm_in_both_spellings_of_its_vit(lewm_state):
    older = {}
    for key, value in lewm_state.items():
        for new, old in OLDER:
            key = key.replace(new, old) if key.startswith("encoder.") else key
        older[f"model.{key}"] = value
    older["model.encoder.pooler.dense.weight"] = torch.zeros(24, 24)
    (first, none), (second, pooler) = lewm.translate(lewm_state), lewm.translate(older)
    assert none == [] and pooler == ["model.encoder.pooler.dense.weight"]
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_lewm_sizes_come_from_the_shapes():
    made = WorldModel(
        ClassTokenViT(20, 24, 8, 12, 3, 2, 2.0, 14), WindowPredictor(20, 20, 3, 5, 4, 2, 22, 6, 18), Online()
    )
    made.predictor.bind(4)
    encoder, predictor = lewm.parts(made.state_dict(), heads=2, predictor_heads=5)
    encoder.load_state_dict(made.encoder.state_dict())
    predictor.load_state_dict(made.predictor.state_dict())
    assert encoder.size == 24 and predictor.window == 2 and predictor.blocks[0].heads == 5


def test_a_published_lewm_plans(lewm_state, tmp_path):
    save_file(lewm_state, tmp_path / "lewm.safetensors")
    world = lewm.load_lewm(str(tmp_path / "lewm.safetensors"), SPECS, heads=3, predictor_heads=2)
    video = torch.randint(0, 256, (2, 1, 3, 56, 56), dtype=torch.uint8)
    assert world.rollout(world.encode(Sample(video=video)), torch.randn(2, 3, 5, 4)).isfinite().all()
    other = Specs(SPECS.action, ObservationSpec(64, 64))
    with pytest.raises(InputError, match="56x56 pixels, the specs say 4 and 64x64"):
        lewm.load_lewm(str(tmp_path / "lewm.safetensors"), other, heads=3, predictor_heads=2)
    with pytest.raises(InputError, match="predictor_heads was given 5"):
        lewm.load_lewm(str(tmp_path / "lewm.safetensors"), SPECS, heads=3, predictor_heads=5)


@pytest.mark.parametrize("camera", [False, True])
def test_a_published_predictor_loads(ac_state, camera, tmp_path):
    wrapped = {f"module.{key}": value for key, value in ac_state.items()}
    torch.save({"predictor": wrapped, "epoch": 3}, tmp_path / "ac.pt")
    predictor = vjepa2_ac.load_vjepa2_ac(str(tmp_path / "ac.pt"), (2, 2), heads=2, camera=camera)
    assert predictor.camera == (6 if camera else 0) and not predictor.training
    _, leftovers = vjepa2_ac.translate(wrapped, camera)
    assert len(leftovers) == (0 if camera else 2)


def test_unknown_and_missing_keys_are_refused(lewm_state, ac_state):
    for build, state, key in (
        (lewm.build, lewm_state, "encoder.layernorm.weight"),
        (lambda given: vjepa2_ac.build(given, (2, 2), 2), ac_state, "predictor_norm.weight"),
    ):
        with pytest.raises(InputError, match="no part for 'decoder.weight' and 0 more"):
            build(state | {"decoder.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="Missing key.*final_norm.weight"):
        vjepa2_ac.build({key: value for key, value in ac_state.items() if key != "predictor_norm.weight"}, (2, 2), 2)
    del lewm_state["encoder.layers.0.attention.k_proj.weight"]
    with pytest.raises(InputError, match="lacks what becomes encoder.blocks.0.attn.k.weight"):
        lewm.translate(lewm_state)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("encoder.embeddings.patch_embeddings.projection.weight", "expected 4 axes"),
        ("encoder.embeddings.position_embeddings", "expected 3 axes"),
        ("encoder.layers.0.attention.k_proj.weight", "expected one shape"),
        ("action_encoder.patch_embed.weight", "expected 3 axes"),
        ("predictor.pos_embedding", "expected 3 axes"),
        ("predictor.transformer.layers.0.attn.to_qkv.weight", "expected 2 axes"),
    ],
)
def test_wrong_shapes_are_refused(lewm_state, key, message):
    assert key in lewm_state
    with pytest.raises(InputError, match=message):
        lewm.build(lewm_state | {key: torch.tensor(1.0)}, predictor_heads=2)


def test_a_predictor_of_wrong_shapes_is_refused(ac_state):
    for key in ("predictor_embed.weight", "action_encoder.weight", "predictor_blocks.0.mlp.fc1.weight"):
        assert key in ac_state
        with pytest.raises(InputError, match="expected 2 axes"):
            vjepa2_ac.build(ac_state | {key: torch.tensor(1.0)}, (2, 2), 2)


def test_files_that_hold_something_else(tmp_path):
    with pytest.raises(InputError, match="no weights at"):
        vjepa2_ac.load_vjepa2_ac(str(tmp_path / "none.pt"))
    (tmp_path / "noise.pt").write_bytes(b"noise")
    with pytest.raises(InputError, match="damaged"):
        vjepa2_ac.load_vjepa2_ac(str(tmp_path / "noise.pt"))
    torch.save({"predictor": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(InputError, match="no state dict of a predictor"):
        vjepa2_ac.load_vjepa2_ac(str(tmp_path / "list.pt"))
