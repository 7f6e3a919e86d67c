"""Official files: what they are is seen, what is left over listed, what is unknown or missing refused in one line."""

from __future__ import annotations

import logging
import os

import pytest
import torch
from official import (
    DEPTH,
    DIM,
    PATCH,
    TUBELET,
    WRAPPED,
    checkpoint,
    drawn,
    encoder_shapes,
    predictor_shapes,
    stripped,
)
from safetensors.torch import save_file

from jepa.checkpoints import load
from jepa.checkpoints.grids import grid_of
from jepa.checkpoints.vjepa import encoder_to_published, predictor_to_published
from jepa.errors import InputError
from jepa.models.frozen import FrozenEncoder
from jepa.models.masked import MaskedJEPA
from jepa.models.positions import sincos_2d, sincos_3d
from jepa.models.targets import EMA
from jepa.schema import Sample

FORMS = {"ijepa": "sincos_2d", "vjepa": "sincos_uniform", "vjepa2": "rotary_tiled", "vjepa2_1": "rotary_interpolated"}
SIDE, FRAMES = 4, 6  # of the grid, of the clip
PREFIX = "module.backbone."


def tokens(family):
    return SIDE**2 * (1 if family == "ijepa" else FRAMES // TUBELET)


def written(folder, family, change=lambda held: held, name="published.pt"):
    torch.manual_seed(0)
    held = change(checkpoint(family, tokens(family)))
    torch.save(held, folder / name)
    return str(folder / name), held


def sizes(family):
    """What the weights of an unpublished width do not say."""
    said = {"heads": 2} if family in ("ijepa", "vjepa") else {"heads": 2, "predictor_heads": 2, "size": SIDE * PATCH}
    return said | ({} if family == "ijepa" else {"frames": FRAMES})


def same(module, state, back):
    mine, theirs = back(module), stripped(state)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def refused(match, *arguments, **given):
    with pytest.raises(InputError, match=match) as caught:
        load(*arguments, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FORMS)
def test_every_tensor_of_an_official_file_finds_its_place(tmp_path, family, caplog):
    path, held = written(tmp_path, family)
    with caplog.at_level(logging.INFO):
        model = load(path, **sizes(family))
    assert isinstance(model, MaskedJEPA) and isinstance(model.target, EMA) and not model.training
    assert model.encoder.positions.form == FORMS[family]
    assert same(model.encoder, held["encoder"], encoder_to_published)
    assert same(model.target.teacher, held["target_encoder"], encoder_to_published)
    assert same(model.predictor, held["predictor"], predictor_to_published)
    assert model.leftovers == ["opt", "scaler", "epoch", "loss", "lr"]
    assert "left over are opt, scaler, epoch" in caplog.text and f"family={family}" in caplog.text
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FORMS)
def test_which_chooses_the_encoder(tmp_path, family):
    path, held = written(tmp_path, family)
    frames = 1 if family == "ijepa" else FRAMES
    clip = Sample(video=torch.randint(0, 256, (2, frames, 3, SIDE * PATCH, SIDE * PATCH), dtype=torch.uint8))
    z = {which: load(path, which, **sizes(family)).encode(clip) for which in ("target", "context")}
    assert z["target"].shape == (2, 1 if frames == 1 else frames // TUBELET, SIDE**2, DIM)
    assert (z["target"] - z["context"]).abs().mean() > 0.1
    for name, which in (("target_encoder", "target"), ("encoder", "context")):
        torch.save({name: held[name]}, tmp_path / "one.pt")
        alone = load(str(tmp_path / "one.pt"), which, **sizes(family))
        assert isinstance(alone, FrozenEncoder) and torch.equal(alone.encode(clip), z[which])
        assert alone.specs.observation.height == SIDE * PATCH
    torch.save({"target_encoder": held["target_encoder"]}, tmp_path / "one.pt")
    refused("no context encoder", str(tmp_path / "one.pt"), "context", **sizes(family))


def test_an_encoder_that_there_is_not_is_refused(tmp_path):
    path, _ = written(tmp_path, "vjepa2")
    for which in ("contxt", None):
        refused(f"which was given {which!r}", path, which, **sizes("vjepa2"))


@pytest.mark.parametrize("family", FORMS)
def test_bare_state_dicts_in_both_containers(tmp_path, family):
    path, held = written(tmp_path, family)
    whole = load(path, **sizes(family)).target.teacher.state_dict()
    torch.save(held["target_encoder"], tmp_path / "bare.pt")
    torch.save(held["target_encoder"], tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    save_file(stripped(held["target_encoder"]), tmp_path / "bare.safetensors")
    nested = {f"{part}.{k}": v for part in ("target_encoder", "predictor") for k, v in stripped(held[part]).items()}
    save_file(nested, tmp_path / "nested.safetensors")
    for name in ("bare.pt", "old.pth.tar", "bare.safetensors", "nested.safetensors"):
        kind = MaskedJEPA if name.startswith("nested") else FrozenEncoder
        model = load(str(tmp_path / name), **sizes(family))
        state = model.encoder.state_dict()
        assert isinstance(model, kind) and all(torch.equal(value, state[key]) for key, value in whole.items())


def test_an_encoder_that_no_part_needs_is_left_over(tmp_path):
    path, held = written(tmp_path, "vjepa2", lambda held: held | {"ema_encoder": held["encoder"]})
    model = load(path, **sizes("vjepa2"))
    assert "ema_encoder" in model.leftovers and same(model.target.teacher, held["target_encoder"], encoder_to_published)


def test_the_untrained_baseline_is_the_same_every_time(tmp_path):
    path, _ = written(tmp_path, "vjepa2")
    first, second, trained = (load(path, untrained=u, **sizes("vjepa2")).state_dict() for u in (True, True, False))
    assert first.keys() == trained.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["encoder.blocks.0.attn.qkv.weight"], trained["encoder.blocks.0.attn.qkv.weight"])


# --- which family, which sizes


def stored_positions(held):
    count = tokens("vjepa")
    held["encoder"]["module.backbone.pos_embed"] = torch.zeros(1, count, DIM)
    held["target_encoder"]["module.backbone.pos_embed"] = torch.zeros(1, count, DIM)
    held["predictor"]["module.backbone.predictor_pos_embed"] = torch.zeros(1, count, 20)
    return held


def test_positions_that_early_files_of_vjepa2_store_are_left_over(tmp_path):
    """V-JEPA has a mask token for each of its two mask generators; with more, it is V-JEPA 2."""
    path, held = written(tmp_path, "vjepa2", stored_positions)
    model = load(path, **sizes("vjepa2"))
    assert model.encoder.positions.form == "rotary_tiled"
    assert [key for key in model.leftovers if "pos_embed" in key] == [
        "encoder: pos_embed",
        "target.teacher: pos_embed",
        "predictor: predictor_pos_embed",
    ]
    encoder_alone = tmp_path / "encoder.pt"
    torch.save(held["encoder"], encoder_alone)
    assert load(str(encoder_alone), heads=2, frames=FRAMES).encoder.positions.form == "sincos_uniform"
    told = load(str(encoder_alone), family="vjepa2", heads=2, frames=FRAMES, size=16)
    assert told.encoder.positions.form == "rotary_tiled" and told.leftovers == ["encoder: pos_embed"]


@pytest.mark.parametrize(
    ("family", "width", "name", "heads", "frame", "frames"),
    [
        ("vjepa2", 1024, "vitl.pt", 16, 256, 64),
        ("vjepa2", 1408, "vitg-384.pt", 22, 384, 64),
        ("vjepa2", 1280, "vith-fpc16-256.pt", 16, 256, 16),
        ("vjepa2_1", 768, "vjepa2_1_vitb_dist_vitG_384.pt", 12, 384, 64),
        ("ijepa", 1408, "IN22K-vit.g.16-600e.pth.tar", 16, 16, 1),
        ("vjepa", 1280, "vith16.pth.tar", 16, 8, 16),
    ],
)
def test_what_the_weights_do_not_say_is_as_published(tmp_path, family, width, name, heads, frame, frames, caplog):
    count = {"ijepa": 16, "vjepa": 8 * 4}.get(family, 0)
    torch.save(drawn(encoder_shapes(family, count, width, depth=4 if family == "vjepa2_1" else 1)), tmp_path / name)
    with caplog.at_level(logging.INFO):
        encoder = load(str(tmp_path / name)).encoder
    assert (encoder.blocks[0].attn.heads, encoder.frame, encoder.frames) == (heads, (frame, frame), frames)
    assert f"{name}: assumed" in caplog.text and f"heads={heads}" in caplog.text


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("ijepa", "heads, predictor_heads;"),
        ("vjepa", "heads, predictor_heads, size, frames;"),
        ("vjepa2", "heads, predictor_heads, size, frames;"),
        ("vjepa2_1", "heads, predictor_heads, size, frames;"),
    ],
)
def test_what_must_be_given_is_listed(tmp_path, family, missing):
    refused(f"do not say {missing} give heads=...", written(tmp_path, family)[0])


def test_frame_sizes_follow_from_stored_positions(tmp_path):
    torch.save(drawn(encoder_shapes("vjepa", 3 * 2 * 5)), tmp_path / "flat.pt")
    encoder = load(str(tmp_path / "flat.pt"), heads=2, size=(8, 20)).encoder
    assert encoder.positions.grid == (3, 2, 5) and encoder.frames == 6
    refused("positions.table", str(tmp_path / "flat.pt"), heads=2, size=(8, 20), frames=8)
    refused("30 tokens, which are no whole frames of 8x8", str(tmp_path / "flat.pt"), heads=2, size=8)
    refused("size", str(tmp_path / "flat.pt"), heads=2, frames=6)


def with_places(family, grid):
    """What training stores: the sines and cosines of the places of a grid."""

    def change(held):
        for part, name, width in (("encoder", "pos_embed", DIM), ("predictor", "predictor_pos_embed", 20)):
            table = sincos_2d(grid[1:], width) if family == "ijepa" else sincos_3d(grid, width)
            held[part][WRAPPED.get(family, PREFIX) + name] = table[None]
        held["target_encoder"] = held["encoder"]
        return held

    return change


def test_images_of_a_width_without_sine_cosine_positions(tmp_path):
    torch.save(drawn(encoder_shapes("ijepa", 16, 22)), tmp_path / "odd.pt")
    refused("22 wide, but sincos_2d positions want a multiple of 4", str(tmp_path / "odd.pt"), heads=2)


@pytest.mark.parametrize(
    ("family", "grid"), [("vjepa", (8, 14, 14)), ("vjepa", (2, 3, 5)), ("ijepa", (1, 14, 14)), ("ijepa", (1, 2, 8))]
)
def test_the_trained_size_is_that_of_the_stored_places(tmp_path, family, grid):
    path, _ = written(tmp_path, family, with_places(family, grid))
    frames, size = grid[0] * (1 if family == "ijepa" else TUBELET), (grid[1] * PATCH, grid[2] * PATCH)
    for given in ({}, {"frames": frames}, {"size": size}, {"frames": frames, "size": size}):
        encoder = load(path, heads=2, **given).encoder
        assert encoder.positions.grid == grid and encoder.frame == size and encoder.frames == frames
    # as many tokens, at other places
    for given in ({"size": (size[0] // grid[1], size[1] * grid[1])}, {"frames": 2 * frames}, {"size": size[0] // 2}):
        refused(f"trained with, of {frames} frames of {size[0]}x{size[1]} pixels, but", path, heads=2, **given)


@pytest.mark.parametrize("form", ["sincos", "sincos_uniform", "sincos_2d"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [24, 1024])
def test_grids_of_tables(form, kind, width):
    for grid in ((1, 1, 1), (1, 24, 24), (4, 14, 7), (1, 3, 2), (32, 1, 2)):
        if form == "sincos_2d":
            grid = (1, *grid[1:])
            table = sincos_2d(grid[1:], width)
        else:
            table = sincos_3d(grid, width, form == "sincos_uniform")
        assert grid_of(table.to(kind), form) == grid
        if len(table) > 1:
            assert grid_of(table.flip(0), form) is None and grid_of(torch.zeros_like(table), form) is None
    assert grid_of(torch.randn(12, 4), form) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 0}, "heads was given 0"),
        ({"size": 0}, "size was given"),
        ({"size": (16, 16, 16)}, "size was given"),
        ({"frames": "many"}, "frames was given 'many'"),
        ({"heads": 7}, "multiple of heads"),
        ({"size": 15}, "multiples"),
        ({"family": "vjepa3"}, "did you mean 'vjepa"),
        ({"positions": "rotary"}, "positions was given"),
        ({"probe": 0}, "holds 0"),
    ],
)
def test_sizes_that_cannot_be(tmp_path, given, message):
    refused(message, written(tmp_path, "vjepa2")[0], **(sizes("vjepa2") | given))


def test_a_checkpoint_of_ours_takes_no_sizes(tmp_path):
    torch.save({"jepa": {"format": 1}, "state_dict": {}}, tmp_path / "last.ckpt")
    refused("published weights only", str(tmp_path / "last.ckpt"), heads=2)


# --- distilled models of V-JEPA 2.1


def test_a_distilled_encoder_keeps_the_predictor_of_its_teachers_latents(tmp_path):
    torch.manual_seed(0)
    held = {"ema_encoder": drawn(encoder_shapes("vjepa2_1", 0))}
    held["predictor"] = drawn(predictor_shapes("vjepa2_1", 0, out=28))
    torch.save(held, tmp_path / "dist.pt")
    model = load(str(tmp_path / "dist.pt"), **sizes("vjepa2_1"))
    assert isinstance(model, FrozenEncoder) and model.predictor.out == 28
    assert same(model.predictor, held["predictor"], predictor_to_published)
    assert same(model.encoder, held["ema_encoder"], encoder_to_published)


@pytest.mark.parametrize(("depth", "levels"), [(4, (0, 1, 2, 3)), (12, (2, 5, 8, 11)), (24, (5, 11, 17, 23))])
@pytest.mark.parametrize("extra", [0, 24])
def test_the_levels_are_those_of_the_releases(tmp_path, depth, levels, extra):
    if extra:
        depth, levels = {4: (48, (11, 23, 37, 47)), 12: (40, (9, 19, 29, 39))}.get(depth, (24, (5, 11, 17, 23)))
    torch.save(drawn(encoder_shapes("vjepa2_1", 0, 8, depth)), tmp_path / "deep.pt")
    assert load(str(tmp_path / "deep.pt"), heads=2, size=16, frames=2).encoder.levels == levels


# --- what is refused


def put(part, key, value):
    def change(held):
        (held if part is None else held[part])[key] = value
        return held

    return change


def drop(part, key):
    def change(held):
        del held[part][key]
        return held

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("encoder", f"{PREFIX}blocks.0.ls1.gamma", torch.zeros(1)), "no part for 'blocks.0.ls1.gamma'"),
        (put("target_encoder", f"{PREFIX}cls_token", torch.zeros(1)), "no part for 'cls_token'"),
        (put("predictor", f"{PREFIX}mystery", torch.zeros(1)), "no part for 'mystery'"),
        (put("predictor", f"{PREFIX}mask_tokens.9", torch.zeros(1, 1, 20)), "mask_tokens.3"),
        (put("encoder", "unwrapped", torch.zeros(1)), "no part for"),
        (put("encoder", "norm.weight", torch.zeros(DIM)), "norm.weight' and 'norm.weight' .* under two names"),
        (put(None, "decoder", {"weight": torch.zeros(1)}), "weights under 'decoder'"),
        (put(None, "encoder", {"weight": 3}), "no state dict under 'encoder'"),
        (put(None, "predictor", 3), "no state dict under 'predictor'"),
        (drop("encoder", f"{PREFIX}norm.bias"), "final_norm.bias"),
        (drop("target_encoder", f"{PREFIX}blocks.1.norm1.bias"), "blocks.1.norm1.bias"),
        (drop("predictor", f"{PREFIX}mask_tokens.0"), "mask_tokens.0"),
        (drop("encoder", f"{PREFIX}patch_embed.proj.weight"), "patch_embed"),
        (put("encoder", f"{PREFIX}patch_embed.proj.weight", torch.zeros(DIM, 3)), "patch embedding"),
        (put("encoder", f"{PREFIX}blocks.{DEPTH}.norm1.bias", torch.zeros(DIM)), f"blocks.{DEPTH}"),
        (put("predictor", f"{PREFIX}predictor_embed.weight", torch.zeros(3)), "expected 2 axes"),
        (put("encoder", f"{PREFIX}patch_embed.proj.weight", torch.tensor(1.0)), r"patch embedding .* shape \(\)"),
        (put("target_encoder", f"{PREFIX}patch_embed.proj.weight", torch.zeros(DIM, 3, 0, 4, 4)), "an empty tensor"),
        (put("encoder", f"{PREFIX}patch_embed.proj.weight", torch.zeros(0, 3, 2, 4, 4)), "an empty tensor"),
        (put("encoder", f"{PREFIX}blocks.0.mlp.fc1.weight", torch.zeros(3, 0)), "an empty tensor"),
        (put("encoder", f"{PREFIX}blocks.0.mlp.fc1.weight", torch.tensor(1.0)), "expected 2 axes"),
        (put("predictor", f"{PREFIX}mask_tokens.1", torch.zeros(1, 1, 5)), r"mask_tokens.1 .* \(1, 1, 5\), mask"),
        (put("predictor", f"{PREFIX}mask_tokens.1", torch.zeros(20)), r"mask_tokens.1 .* \(20,\)"),
        (put("predictor", f"{PREFIX}mask_tokens.0", torch.zeros(20)), "expected 3 axes"),
        (put("predictor", f"{PREFIX}mask_tokens.0", torch.zeros(2, 1, 20)), r"expected \[1,1,width\]"),
        (put("predictor", f"{PREFIX}predictor_embed.weight", torch.zeros(0, DIM)), "an empty tensor"),
        (put("encoder", 3, torch.zeros(3)), "no state dict under 'encoder'"),
        (put(None, 3, torch.zeros(3)), "has 3 among its names"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, change, message):
    refused(message, written(tmp_path, "vjepa2", change)[0], **sizes("vjepa2"))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"weight": torch.zeros(2)}, "its keys are weight"),
        ({"action_encoder.weight": torch.zeros(2, 2)}, "load_vjepa2_ac"),
        ({"predictor": {"module.action_encoder.weight": torch.zeros(2, 2)}}, "load_vjepa2_ac"),
        ({"action_encoder.patch_embed.weight": torch.zeros(2, 2)}, "load_lewm"),
        ({"predictor": {"predictor_embed.weight": torch.zeros(2, 2)}}, "holds no encoder"),
        ({"epoch": 3}, "jepa fit"),
        ({1: torch.zeros(3)}, "jepa fit"),
        (torch.zeros(3), "jepa fit"),
    ],
)
def test_files_of_other_things(tmp_path, held, message):
    torch.save(held, tmp_path / "other.pt")
    refused(message, str(tmp_path / "other.pt"))


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["opt", "encoder", "whole"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_object_does_not_run(tmp_path, place, zipped):
    evil = Payload(tmp_path / "ran")
    held = evil if place == "whole" else checkpoint("vjepa2", 0) | {place: evil}
    path = tmp_path / "evil.pth.tar"
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    refused("pickled objects", str(path), **sizes("vjepa2"))
    assert not (tmp_path / "ran").exists()
