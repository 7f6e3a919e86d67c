"""The verb ``jepa inspect`` of published weights: probes, and the folders of HF transformers."""

from __future__ import annotations

import pytest
import torch

from jepa.checkpoints import load
from jepa.checkpoints.attentive import probe_to_published
from jepa.checkpoints.export import write_hf
from jepa.cli import main
from jepa.models.attentive import AttentiveClassifier
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.masked import MaskedJEPA
from jepa.models.targets import EMA
from jepa.models.video import VideoViT


def said(capsys, path):
    assert main(["inspect", str(path)]) == 0
    return capsys.readouterr().out


def test_a_probe_and_what_is_left_over_of_its_file(tmp_path, capsys):
    state = probe_to_published(AttentiveClassifier(192, 16, 1, 5))
    torch.save({"classifiers": [state, state], "opt": {}, "epoch": 3}, tmp_path / "probe.pt")
    assert load(str(tmp_path / "probe.pt"), probe=1).leftovers == ["opt", "epoch", "probe 0"]
    printed = said(capsys, tmp_path / "probe.pt")
    assert "AttentivePooler" in printed and "opt, epoch, probe 1" in printed
    torch.save(state, tmp_path / "bare.pt")
    assert "nothing" in said(capsys, tmp_path / "bare.pt")


@pytest.mark.parametrize("place", ["hf", "hf/model.safetensors"])
def test_a_folder_of_transformers_and_its_file(tmp_path, capsys, place):
    encoder = VideoViT(16, 4, 2, 8, 24, 1, 2, positions="rotary_tiled")
    model = MaskedJEPA(encoder, MaskPredictor(24, (2, 2, 2), 2, 16, 1, 2, positions="rotary_tiled"), EMA())
    write_hf(model, tmp_path / "hf")
    assert "VideoViT" in said(capsys, tmp_path / place)


def test_a_folder_of_nothing_that_is_known_is_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    complaint = capsys.readouterr().err
    assert "nor weights (.safetensors)" in complaint and complaint.count("\n") == 1
