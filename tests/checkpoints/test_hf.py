"""V-JEPA 2 of HF transformers with random weights: the same numbers from ours, and its files both ways."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from jepa.checkpoints import load
from jepa.checkpoints.export import write_hf, write_official
from jepa.errors import InputError
from jepa.models.layers import take
from jepa.models.masked import MaskedJEPA

transformers = pytest.importorskip("transformers")
LIMIT = 1e-5
# hidden size, heads, hidden over it, predictor's size, heads and mask tokens, rows, frames
SIZES = [
    (48, 2, 4.0, 24, 2, 2, 4, 8),  # heads of 24 and 12
    (44, 4, 48 / 11, 36, 2, 3, 3, 6),  # heads of 11 and 18; the hidden width of ViT-g
    (60, 4, 2.5, 20, 5, 10, 2, 4),  # heads of 15 and 4
    (64, 1, 3.0, 26, 2, 1, 5, 2),  # heads of 64 and 13
    (66, 3, 2.7, 34, 1, 4, 4, 10),  # heads of 22 and 34
]


def config(hidden, heads, ratio, narrow, narrow_heads, masks, rows, frames, **more):
    return transformers.VJEPA2Config(
        patch_size=4,
        crop_size=4 * rows,
        frames_per_clip=frames,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=3,
        mlp_ratio=ratio,
        pred_hidden_size=narrow,
        pred_num_attention_heads=narrow_heads,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=masks,
        num_pooler_layers=2,
        **more,
    )


def drawn(kind, about):
    torch.manual_seed(0)
    model = kind(about).eval()
    for value in model.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    return model


def masks(count):
    order = torch.stack([torch.randperm(count) for _ in range(2)])
    return order[:, : count // 2].sort(1).values, order[:, count // 2 :].sort(1).values


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_encoder_and_predictor_give_the_same_numbers(tmp_path, sizes):
    """transformers encodes the whole clip and masks what comes out; ours is fed alike. It asks with mask token 1."""
    theirs = drawn(transformers.VJEPA2Model, config(*sizes))
    theirs.save_pretrained(tmp_path)
    ours = load(str(tmp_path))
    assert isinstance(ours, MaskedJEPA) and ours.leftovers == []
    rows, frames = sizes[-2:]
    video = torch.randn(2, frames, 3, 4 * rows, 4 * rows)
    context, target = masks(frames // 2 * rows**2)
    made = theirs(video, context_mask=[context], target_mask=[target])
    z = ours.encoder.encode(ours.encoder.embed(video))
    assert (z - made.last_hidden_state).abs().max() < LIMIT
    p = ours.predictor(take(z, context), context, target, 1 % sizes[5])
    assert (p - made.predictor_output.last_hidden_state).abs().max() < LIMIT


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_back_into_transformers(tmp_path, sizes):
    theirs = drawn(transformers.VJEPA2Model, config(*sizes))
    theirs.save_pretrained(tmp_path / "theirs")
    write_hf(load(str(tmp_path / "theirs")), tmp_path / "ours")
    again = transformers.VJEPA2Model.from_pretrained(tmp_path / "ours")
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in theirs.state_dict().items())
    video = torch.randn(1, sizes[-1], 3, 4 * sizes[-2], 4 * sizes[-2])
    assert torch.equal(again(video).last_hidden_state, theirs(video).last_hidden_state)


def early(state):
    """The names that the first converter wrote."""
    return {key.replace("attention.", "attention.attention."): value for key, value in state.items()}


@pytest.mark.parametrize("names", [dict, early])
def test_a_single_file_with_and_without_its_config(tmp_path, names, caplog):
    theirs = drawn(transformers.VJEPA2Model, config(*SIZES[0]))
    theirs.save_pretrained(tmp_path)
    state = names(load_file(tmp_path / "model.safetensors"))
    save_file(state, tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors").unlink()
    first = load(str(tmp_path / "other.safetensors")).state_dict()
    assert load(str(tmp_path / "other.safetensors"), "context").reads == "context"  # the only encoder is either
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="do not say heads, predictor_heads, size, frames"):
        load(str(tmp_path / "other.safetensors"))
    given = {"heads": 2, "predictor_heads": 2, "size": 16, "frames": 8}
    second = load(str(tmp_path / "other.safetensors"), **given).state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_folder_of_shards(tmp_path):
    theirs = drawn(transformers.VJEPA2Model, config(*SIZES[0]))
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = load(str(tmp_path)).encoder.state_dict()
    assert torch.equal(state["blocks.2.mlp.0.weight"], theirs.encoder.layer[2].mlp.fc1.weight)


@torch.no_grad()
def test_video_classification_is_a_model_and_a_probe(tmp_path):
    theirs = drawn(transformers.VJEPA2ForVideoClassification, config(*SIZES[0], num_labels=7))
    theirs.save_pretrained(tmp_path)
    model, probe = load(str(tmp_path)), load(str(tmp_path), probe=0)
    video = torch.randn(3, 8, 3, 16, 16)
    logits = probe(model.encoder.encode(model.encoder.embed(video)))
    assert (logits - theirs(video).logits).abs().max() < LIMIT
    assert model.leftovers == ["probe"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s | {"encoder.layer.0.gate.weight": torch.zeros(1)}, "no part for 'layer.0.gate.weight'"),
        (lambda s: s | {"decoder.weight": torch.zeros(1)}, "no part for 'decoder.weight'"),
        (lambda s: {k: v for k, v in s.items() if "layer.1.attention.key.bias" not in k}, "attn.key.bias"),
        (lambda s: {k: v for k, v in s.items() if "mask_tokens" not in k}, "mask_tokens.0"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    drawn(transformers.VJEPA2Model, config(*SIZES[0])).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(damage(load_file(path)), path)
    with pytest.raises(InputError, match=message) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        load(str(path))


def test_official_to_transformers_and_back(tmp_path):
    """The layouts hold one another's tensors bit by bit, whichever encoder is asked for."""
    drawn(transformers.VJEPA2Model, config(*SIZES[1])).save_pretrained(tmp_path / "hf")
    first = load(str(tmp_path / "hf"))
    write_official(first, tmp_path / "model.pt")
    held = torch.load(tmp_path / "model.pt", weights_only=True)
    held["target_encoder"] = {key: value + 1 for key, value in held["target_encoder"].items()}
    torch.save(held, tmp_path / "model.pt")
    second = load(str(tmp_path / "model.pt"))
    for which in ("context", "target"):
        write_hf(second, tmp_path / which, which)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    context, target = (load_file(tmp_path / which / "model.safetensors") for which in ("context", "target"))
    assert state.keys() == context.keys() == target.keys()
    assert all(torch.equal(state[key], context[key]) for key in state)
    assert all(torch.equal(state[key] + key.startswith("encoder."), target[key]) for key in state)
    about = json.loads((tmp_path / "target" / "config.json").read_text())
    assert about["model_type"] == "vjepa2" and about["crop_size"] == 12 and about["frames_per_clip"] == 6
