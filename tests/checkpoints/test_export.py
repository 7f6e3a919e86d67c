"""Files that we write are those of the releases: their keys, their tensors, whole or not there at all."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from official import checkpoint, stripped

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


def test_one_encoder_is_written_under_both_names(tmp_path):
    for model in (masked(target=Online(stop_gradient=True)), FrozenEncoder(masked().encoder)):
        held = official(model)
        assert held["encoder"].keys() == held["target_encoder"].keys()
        assert ("predictor" in held) == isinstance(model, MaskedJEPA)
        write_official(model, tmp_path / "one.pt")
        assert type(load(str(tmp_path / "one.pt"))) is type(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: masked("rotary_interleaved"), "positions=rotary_interleaved"),
        (lambda: masked("rotary_tiled", size=(16, 24)), "frames that are not square"),
        (lambda: masked("rotary_tiled", swiglu=True), "gated feed-forward"),
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


def test_prefixes_are_those_of_the_releases(tmp_path):
    for family, prefix in (("ijepa", "module."), ("vjepa2", "module.backbone.")):
        held = official(loaded(tmp_path, family)[0])
        assert all(key.startswith(prefix) for part in ("encoder", "predictor") for key in held[part])
        assert "patch_embed.proj.weight" in stripped(held["encoder"])
