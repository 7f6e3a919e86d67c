"""The verb ``jepa export``: from the command line, out of our checkpoints and of published files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from jepa.checkpoints import load
from jepa.checkpoints.load import describe
from jepa.cli import main
from jepa.models.encoders import ConvNet
from jepa.models.frozen import frame_specs
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.masked import MaskedJEPA
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import EMA
from jepa.models.video import VideoViT
from jepa.models.world import WorldModel

ENCODER = {"size": 16, "frames": 4, "patch": 8, "dim": 24, "depth": 2, "heads": 2, "positions": "rotary_tiled"}
PREDICTOR = {"dim": 24, "grid": [2, 2, 2], "width": 16, "depth": 1, "heads": 2, "positions": "rotary_tiled"}
TREE = {
    "class_path": "jepa.models.masked.MaskedJEPA",
    "init_args": {
        "encoder": {"class_path": "jepa.models.video.VideoViT", "init_args": ENCODER},
        "predictor": {"class_path": "jepa.models.mask_predictor.MaskPredictor", "init_args": PREDICTOR},
        "target": {"class_path": "jepa.models.targets.EMA"},
    },
}


@pytest.fixture
def trained(tmp_path):
    """A checkpoint as `jepa fit` writes it, and its model, whose teacher differs from its encoder."""
    torch.manual_seed(0)
    model = MaskedJEPA(VideoViT(**ENCODER), MaskPredictor(**PREDICTOR), EMA()).eval()
    for value in model.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    model.bind(frame_specs(16, 16))
    state = {f"world.{key}": value for key, value in model.state_dict().items()}
    torch.save({"jepa": describe(model, TREE), "state_dict": state, "global_step": 3}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", model


def video():
    return torch.randint(0, 256, (1, 4, 3, 16, 16), dtype=torch.uint8)


def test_our_checkpoint_in_the_official_layout(trained, capsys):
    path, model = trained
    out = path.with_name("model.pt")
    assert main(["export", str(path), "--out", str(out)]) == 0
    assert f"{out} (official layout)" in capsys.readouterr().out
    again, clip = load(str(out)), video()
    assert torch.equal(again.encoder(clip), model.encoder(clip))
    assert torch.equal(again.target.teacher(clip), model.target.teacher(clip))


def test_what_was_exported_is_inspected(trained, capsys):
    path, model = trained
    out = path.with_name("model.pt")
    assert main(["export", str(path), "--out", str(out)]) == 0 and main(["inspect", str(out)]) == 0
    parameters = sum(value.numel() for value in model.encoder.parameters())
    assert f"VideoViT, {parameters:,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["target", "context"])
def test_our_checkpoint_in_transformers(trained, which):
    transformers = pytest.importorskip("transformers")
    path, model = trained
    assert main(["export", str(path), f"--out={path.with_name('hf')}", "--layout=hf", f"--which={which}"]) == 0
    theirs = transformers.VJEPA2Model.from_pretrained(path.with_name("hf")).eval()
    encoder, x = model.encoder if which == "context" else model.target.teacher, torch.randn(1, 4, 3, 16, 16)
    with torch.no_grad():
        made = theirs(x, skip_predictor=True).last_hidden_state
        assert (made - encoder.encode(encoder.embed(x))).abs().max() < 1e-5


def test_from_one_layout_to_the_other_and_back(trained):
    path, _ = trained
    first, second = path.with_name("a.safetensors"), path.with_name("b.safetensors")
    assert main(["export", str(path), "--out", str(first), "--layout", "hf"]) == 0
    assert main(["export", str(first), "--out", str(path.with_name("m.pt"))]) == 0
    assert main(["export", str(path.with_name("m.pt")), "--out", str(second), "--layout", "hf"]) == 0
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_which_reads_our_checkpoint(trained):
    path, model = trained
    clip = video()
    for which, encoder in (("target", model.target.teacher), ("context", model.encoder)):
        found = load(str(path), which)
        assert found.reads == which and torch.equal(found.reader(clip), encoder(clip))


def test_mistakes_are_one_line(trained, capsys, tmp_path):
    path, _ = trained
    world = WorldModel(ConvNet(8, 16, (8, 8, 8), 8), ActionPredictor(8, 16, 1, 2), EMA())
    world.bind(frame_specs(16, 16))
    tree = {
        "class_path": "jepa.models.world.WorldModel",
        "init_args": {
            "encoder": {
                "class_path": "jepa.models.encoders.ConvNet",
                "init_args": {"dim": 8, "size": 16, "channels": [8, 8, 8], "hidden": 8},
            },
            "predictor": {
                "class_path": "jepa.models.predictors.ActionPredictor",
                "init_args": {"dim": 8, "width": 16, "depth": 1, "heads": 2},
            },
            "target": {"class_path": "jepa.models.targets.EMA"},
        },
    }
    state = {f"world.{key}": value for key, value in world.state_dict().items()}
    torch.save({"jepa": describe(world, tree), "state_dict": state}, tmp_path / "world.ckpt")
    for arguments, complaint in (
        ([str(tmp_path / "none.pt"), "--out", "m.pt"], "no checkpoint at"),
        ([str(path), "--out", str(tmp_path / "m.safetensors")], "one file of torch.save"),
        ([str(path), "--out", str(tmp_path)], "one file of torch.save"),
        ([str(path), "--out", "m.pt", "--heads", "2"], "published weights only"),
        ([str(path), "--out", "m.pt", "--layout", "hugging"], "layout"),
        ([str(tmp_path / "world.ckpt"), "--out", str(tmp_path / "m.pt")], "has no published layout"),
        ([str(path)], "out"),
    ):
        assert main(["export", *arguments]) == 2
        complained = capsys.readouterr().err
        assert complaint in complained and complained.count("\n") == 1, complained
    assert not (tmp_path / "m.pt").exists()
