"""The published names of V-JEPA weights: both ways, and nothing unknown passes."""

from __future__ import annotations

import pytest
import torch

from jepa.checkpoints.vjepa import (
    encoder_from_published,
    encoder_to_published,
    predictor_from_published,
    predictor_to_published,
)
from jepa.errors import InputError
from jepa.models.masked import MaskPredictor
from jepa.models.video import VideoViT

GRID = (2, 3, 3)


def encoder(form):
    return VideoViT(24, 4, 2, 8, 36, 2, 3, 8 / 3, form)


def predictor(form):
    part = MaskPredictor(36, GRID, 11, 20, 1, 2, 2.8, form)
    torch.nn.init.normal_(part.mask_tokens)
    return part


def same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("form", ["rotary_tiled", "sincos_uniform"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_there_and_back(form, prefix):
    mine = encoder(form)
    state = {prefix + name: value for name, value in encoder_to_published(mine).items()}
    theirs, leftovers = encoder_from_published(state, 3, 24, 4, form)
    assert same(mine, theirs) and not leftovers
    mine = predictor(form)
    state = {prefix + name: value for name, value in predictor_to_published(mine).items()}
    theirs, leftovers = predictor_from_published(state, 2, GRID, form)
    assert same(mine, theirs) and not leftovers


def test_names_and_shapes_are_the_published_ones():
    state = encoder_to_published(encoder("sincos_uniform"))
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.startswith("blocks.1.")}
    assert shapes == {
        "patch_embed.proj.weight": (36, 3, 2, 8, 8),
        "patch_embed.proj.bias": (36,),
        "pos_embed": (1, 18, 36),
        "blocks.0.norm1.weight": (36,),
        "blocks.0.norm1.bias": (36,),
        "blocks.0.attn.qkv.weight": (108, 36),
        "blocks.0.attn.qkv.bias": (108,),
        "blocks.0.attn.proj.weight": (36, 36),
        "blocks.0.attn.proj.bias": (36,),
        "blocks.0.norm2.weight": (36,),
        "blocks.0.norm2.bias": (36,),
        "blocks.0.mlp.fc1.weight": (96, 36),
        "blocks.0.mlp.fc1.bias": (96,),
        "blocks.0.mlp.fc2.weight": (36, 96),
        "blocks.0.mlp.fc2.bias": (36,),
        "norm.weight": (36,),
        "norm.bias": (36,),
    }
    state = predictor_to_published(predictor("rotary_tiled"))
    assert {name: tuple(value.shape) for name, value in state.items() if "blocks" not in name} == {
        "predictor_embed.weight": (20, 36),
        "predictor_embed.bias": (20,),
        **{f"mask_tokens.{number}": (1, 1, 20) for number in range(11)},
        "predictor_norm.weight": (20,),
        "predictor_norm.bias": (20,),
        "predictor_proj.weight": (36, 20),
        "predictor_proj.bias": (36,),
    }


def test_positions_that_a_rotary_model_stored_are_left_over():
    state = encoder_to_published(encoder("rotary_tiled")) | {"pos_embed": torch.zeros(1, 18, 36)}
    assert encoder_from_published(state, 3, 24, 4, "rotary_tiled")[1] == ["pos_embed"]


def change(name, value):
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("blocks.0.mlp.fc4.weight", torch.zeros(1)), "'blocks.0.mlp.fc4.weight'"),
        (change("blocks.0.mlp.fc3.weight", torch.zeros(1)), "expected 2 axes"),
        (change("norms_block.0.weight", torch.zeros(36)), "level_norms.0.bias"),
        (change("final_norm.weight", torch.zeros(36)), "'final_norm.weight'"),
        (change("norm.weight", torch.zeros(35)), "norm.weight"),
        (change("patch_embed.proj.weight", torch.zeros(36, 3, 8, 8)), "of a video encoder"),
        (change("pos_embed", torch.zeros(1, 9, 36)), "positions.table"),
        (lambda state: {k: v for k, v in state.items() if k != "norm.bias"}, "final_norm.bias"),
        (lambda state: {k: v for k, v in state.items() if k != "pos_embed"}, "positions.table"),
        (lambda state: {k: v for k, v in state.items() if "blocks" in k}, "patch_embed.weight"),
    ],
)
def test_a_state_dict_of_another_model_is_refused_in_one_line(damage, message):
    state = damage(encoder_to_published(encoder("sincos_uniform")))
    with pytest.raises(InputError, match=message) as caught:
        encoder_from_published(state, 3, 24, 4, "sincos_uniform")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [range(3, 4), range(11)])
def test_missing_mask_tokens_are_named(missing):
    state = predictor_to_published(predictor("rotary_tiled"))
    for number in missing:
        del state[f"mask_tokens.{number}"]
    with pytest.raises(InputError, match=f"mask_tokens.{missing[0]}"):
        predictor_from_published(state, 2, GRID, "rotary_tiled")
