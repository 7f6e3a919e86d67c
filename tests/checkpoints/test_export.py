"""Files that we write are those of the releases: their keys, their tensors, whole or not there at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from official import checkpoint, stripped
from safetensors.torch import load_file, save_file

from jepa.checkpoints import load
from jepa.checkpoints.export import official, write_hf, write_official
from jepa.errors import InputError
from jepa.models.encoders import ViT
from jepa.models.frozen import FrozenEncoder
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.masked import MaskedJEPA
from jepa.models.targets import EMA, Online
from jepa.models.video import VideoViT

FAMILIES = ("ijepa", "vjepa", "vjepa2", "vjepa2_1")


def loaded(folder, family):
    torch.manual_seed(0)
    held = checkpoint(family, 16 if family == "ijepa" else 48)
    torch.save(held, folder / "theirs.pt")
    frames = {} if family == "ijepa" else {"frames": 6}
    sizes = {} if family in ("ijepa", "vjepa") else {"size": 16}
    return load(str(folder / "theirs.pt"), heads=2, predictor_heads=2, **frames, **sizes), held


@pytest.mark.parametrize("family", FAMILIES)
def test_an_official_file_comes_back_bit_by_bit(tmp_path, family):
    model, held = loaded(tmp_path, family)
    write_official(model, tmp_path / "ours.pt")
    ours = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert ours.keys() == {"encoder", "predictor", "target_encoder", "sizes"}
    for part in ("encoder", "predictor", "target_encoder"):
        assert ours[part].keys() == held[part].keys()
        assert all(torch.equal(ours[part][key], value) for key, value in held[part].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_our_files_say_their_sizes(tmp_path, family):
    first, _ = loaded(tmp_path, family)
    write_official(first, tmp_path / "ours.pt")
    second = load(str(tmp_path / "ours.pt"))
    assert second.leftovers == []
    assert second.encoder.positions.grid == first.encoder.positions.grid
    mine, theirs = first.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    video = torch.randint(0, 256, (1, 1 if family == "ijepa" else 6, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(first.target.teacher(video), second.target.teacher(video))


def masked(form="rotary_interleaved", target=None, size=16, **more):
    encoder = VideoViT(size, 4, 2, 8, 24, 2, 2, positions=form, **more)
    swiglu = {"swiglu": more["swiglu"]} if "swiglu" in more else {}
    predictor = MaskPredictor(24, encoder.positions.grid, 2, 16, 1, 2, positions=form, **swiglu)
    return MaskedJEPA(encoder, predictor, target or EMA())


@pytest.mark.parametrize("form", ["rotary_interleaved", "sincos"])
@pytest.mark.parametrize("more", [{}, {"swiglu": True}, {"size": (8, 24)}])
def test_models_that_no_release_has_come_back_too(tmp_path, form, more, caplog):
    model = masked(form, **more).eval()
    write_official(model, tmp_path / "ours.pt")
    assert f"positions={form}" in caplog.text
    again = load(str(tmp_path / "ours.pt"))
    height, width = model.encoder.frame
    video = torch.randint(0, 256, (1, 4, 3, height, width), dtype=torch.uint8)
    assert torch.equal(again.encoder(video), model.encoder(video))


def randomised(encoder, predictor):
    torch.manual_seed(0)
    model = MaskedJEPA(VideoViT(16, 4, 2, 8, 24, 4, 2, **encoder), MaskPredictor(**predictor), EMA()).eval()
    for value in model.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    return model


TILED = {"positions": "rotary_tiled"}
PREDICTOR = {"dim": 24, "grid": (2, 2, 2), "masks": 2, "width": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize(
    ("encoder", "predictor", "said"),
    [
        ({"levels": (0, 3)}, {"levels": 2}, "levels=(0, 3)"),
        ({"levels": (0, 1, 3)}, {"levels": 3}, "levels=(0, 1, 3)"),
        ({"levels": (1, 3)}, {"levels": 2}, None),
        ({"norm": True}, {}, "norm=True"),
        ({}, {"positions": "rotary_interleaved"}, "predictor_positions=rotary_interleaved"),
        ({}, {"positions": "sincos_uniform"}, "predictor_positions=sincos_uniform"),
        ({"positions": "sincos_uniform"}, {"positions": "rotary_interleaved"}, "predictor_positions=rotary_i"),
    ],
)
@torch.no_grad()
def test_what_leaves_no_trace_is_in_the_sizes(tmp_path, encoder, predictor, said, caplog):
    first = randomised(TILED | encoder, PREDICTOR | TILED | predictor)
    write_official(first, tmp_path / "ours.pt")
    assert said in caplog.text if said else not caplog.text
    second, video = load(str(tmp_path / "ours.pt")), torch.randint(0, 256, (1, 4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(first.encoder.latents(video), second.encoder.latents(video))
    context, target = torch.arange(4)[None], torch.arange(4, 8)[None]
    z = first.encoder.visible(video, context)
    assert torch.equal(first.predictor(z, context, target), second.predictor(z, context, target))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"levels": [0, "3"]}, "levels=\\(0, '3'\\); expected numbers of blocks"),
        ({"levels": [0, 2]}, "that end with the last"),
        ({"levels": [1, 3]}, "level_norms"),
        ({"norm": 1}, "norm=1; expected true or false"),
        ({"eps": "small"}, "eps='small'"),
        ({"predictor_positions": "rotary"}, "predictor_positions was given 'rotary'"),
        ({1: 2, "head": 3}, r"\['1', 'head'\]; known are"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(tmp_path, sizes, message):
    held = official(masked())
    torch.save(held | {"sizes": held["sizes"] | sizes}, tmp_path / "ours.pt")
    with pytest.raises(InputError, match=message) as caught:
        load(str(tmp_path / "ours.pt"))
    assert "\n" not in str(caught.value)


def test_one_encoder_is_written_under_both_names(tmp_path):
    for model in (masked(target=Online(stop_gradient=True)), FrozenEncoder(masked().encoder)):
        held = official(model)
        assert held["encoder"].keys() == held["target_encoder"].keys()
        assert ("predictor" in held) == isinstance(model, MaskedJEPA)
        write_official(model, tmp_path / "one.pt")
        assert type(load(str(tmp_path / "one.pt"))) is type(model)


@pytest.mark.parametrize(("which", "name"), [("target", "target_encoder"), ("context", "encoder")])
@pytest.mark.parametrize("entries", [("encoder", "target_encoder"), ("encoder", "target_encoder", "predictor"), None])
def test_an_encoder_that_had_a_name_keeps_it(tmp_path, which, name, entries):
    """Files without a predictor, of a distilled encoder, and with one encoder beside the predictor."""
    _, held = loaded(tmp_path, "vjepa2")
    held = {entry: held[entry] for entry in entries or (name, "predictor")}
    if entries and "predictor" in held:
        held["predictor"]["module.backbone.predictor_proj.weight"] = torch.zeros(30, 20)
        held["predictor"]["module.backbone.predictor_proj.bias"] = torch.zeros(30)
    torch.save(held, tmp_path / "theirs.pt")
    model = load(str(tmp_path / "theirs.pt"), which, heads=2, predictor_heads=2, size=16, frames=6)
    assert model.leftovers == ([other for other in ("encoder", "target_encoder") if other != name] if entries else [])
    write_official(model, tmp_path / "ours.pt")
    ours = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert ours.keys() == {name, "sizes", *(held.keys() & {"predictor"})}
    assert all(torch.equal(ours[name][key], value) for key, value in held[name].items())
    again = load(str(tmp_path / "ours.pt"), which)
    assert type(again) is type(model) and again.leftovers == []


def forecasting(**predictor):
    return randomised(TILED, PREDICTOR | TILED | predictor)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: masked("rotary_interleaved"), "positions=rotary_interleaved"),
        (lambda: masked("rotary_tiled", size=(16, 24)), "frames that are not square"),
        (lambda: masked("rotary_tiled", swiglu=True), "gated feed-forward"),
        (lambda: forecasting(swiglu=True), "gated feed-forward"),
        (lambda: forecasting(context=True), "forecasts of the context"),
        (lambda: forecasting(positions="sincos"), "positions=sincos in the predictor"),
        (lambda: randomised(TILED | {"norm": True}, PREDICTOR | TILED), "a norm without"),
        (lambda: FrozenEncoder(masked("rotary_tiled").encoder), "given a FrozenEncoder"),
    ],
)
def test_what_transformers_cannot_hold_is_said(tmp_path, model, message):
    with pytest.raises(InputError, match=message) as caught:
        write_hf(model(), tmp_path / "hf")
    assert "\n" not in str(caught.value) and not (tmp_path / "hf").exists()


def test_models_without_a_published_layout(tmp_path):
    with pytest.raises(InputError, match="FrozenEncoder with a ViT has no published layout"):
        write_official(FrozenEncoder(ViT(24, 16, 8, 24, 1, 2)), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_official, write_hf])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / ("model.pt" if write is write_official else "model.safetensors")
    write(masked("rotary_tiled"), path)
    before, files = path.read_bytes(), sorted(tmp_path.iterdir())

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no room to write the checkpoint"):
        write(masked("rotary_tiled"), path)
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == files


def test_safetensors_errors_of_a_full_disk_are_known(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    import jepa.checkpoints.export as module

    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(InputError, match="no room to write the checkpoint"):
        write_hf(masked("rotary_tiled"), tmp_path / "hf")


def plain_file(folder):
    (folder / "plain.txt").write_text("plain")
    return folder / "plain.txt"


def made_folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (write_official, lambda folder: Path("/proc/model.pt")),
        (write_official, lambda folder: plain_file(folder) / "model.pt"),
        (write_official, lambda folder: plain_file(folder) / "deeper" / "model.pt"),
        (write_official, lambda folder: folder),
        (write_official, lambda folder: folder / f"{'long' * 100}.pt"),
        (write_hf, lambda folder: Path("/proc/model.safetensors")),
        (write_hf, lambda folder: plain_file(folder)),
        (write_hf, lambda folder: made_folder(folder / "model.safetensors")),
    ],
)
def test_places_that_cannot_be_written_to_are_one_line(tmp_path, write, place):
    path = place(tmp_path)
    with pytest.raises(InputError, match=r"cannot write .*; name another folder or file") as caught:
        write(masked("rotary_tiled"), path)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob(".*"))


def test_safetensors_errors_of_the_system_are_known(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    import jepa.checkpoints.export as module

    def refused(*arguments):
        raise SafetensorError(f"Error while serializing: I/O error: {message}")

    monkeypatch.setattr(module, "save_file", refused)
    message = "Permission denied (os error 13)"
    with pytest.raises(InputError, match="cannot write .*: Permission denied; name another"):
        write_hf(masked("rotary_tiled"), tmp_path / "hf")
    message = "something of its own"
    with pytest.raises(SafetensorError, match="of its own"):
        write_hf(masked("rotary_tiled"), tmp_path / "hf")


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_all_files_have_the_mode_of_new_ones(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_hf(masked("rotary_tiled"), tmp_path / "hf")
        write_official(masked(), tmp_path / "hf" / "model.pt")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "hf").iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "config.json", "model.pt"), 0o666 & ~mask)


def test_an_encoder_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"which was given 'contxt' \(did you mean 'context'\?\)"):
        write_hf(masked("rotary_tiled"), tmp_path / "hf", "contxt")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("there", [b"{}", b"\xff", None])
def test_a_config_of_another_model_stays(tmp_path, there):
    if there is None:
        write_hf(masked("rotary_tiled", size=32), tmp_path / "other.safetensors")
    else:
        (tmp_path / "config.json").write_bytes(there)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="config.json describes another model.*name another folder"):
        write_hf(masked("rotary_tiled"), tmp_path / "model.safetensors")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_models_in_one_folder_are_not_merged(tmp_path):
    for name in ("first", "second"):
        write_hf(masked("rotary_tiled"), tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="twice, in first.safetensors and in second.safetensors") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)
    load(str(tmp_path / "first.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 48}, "hidden_size=48, but the weights beside it are 24 wide"),
        ({"hidden_act": "silu"}, "hidden_act='silu', but jepa computes gelu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05, but jepa computes 1e-06"),
        ({"layer_norm_eps": None}, "layer_norm_eps=None"),
    ],
)
def test_a_config_that_the_weights_or_jepa_contradict(tmp_path, change, message):
    write_hf(masked("rotary_tiled"), tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | change))
    with pytest.raises(InputError, match=message) as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)
    kept = {name: value for name, value in about.items() if name not in change}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    load(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("encoder.layer.0.attention.key.weight", (24, 5), r"attn.key.weight .* \(24, 5\), blocks.0.attn.query.weight"),
        # together as large as they should be
        ("encoder.layer.0.attention.key.bias", (25,), r"attn.key.bias .* \(25,\), .* expected one shape"),
        ("encoder.layer.0.attention.query.bias", (), "expected one shape of at least one axis"),
        ("predictor.embeddings.mask_tokens", (2, 16), "expected 4 axes"),
        ("predictor.embeddings.mask_tokens", (), "expected 4 axes"),
        ("encoder.embeddings.patch_embeddings.proj.weight", (), "patch_embed"),
    ],
)
def test_wrong_shapes_in_files_of_transformers_are_one_line(tmp_path, key, shape, message):
    write_hf(masked("rotary_tiled"), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert key in state
    save_file(state | {key: torch.zeros(shape)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_keys_with_and_without_the_prefix_of_classification(tmp_path):
    write_hf(masked("rotary_tiled"), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {f"vjepa2.{key}": value + 1 for key, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="a second time as 'vjepa2.encoder"):
        load(str(tmp_path))


def test_prefixes_are_those_of_the_releases(tmp_path):
    for family, prefix in (("ijepa", "module."), ("vjepa2", "module.backbone.")):
        held = official(loaded(tmp_path, family)[0])
        assert all(key.startswith(prefix) for part in ("encoder", "predictor") for key in held[part])
        assert "patch_embed.proj.weight" in stripped(held["encoder"])
