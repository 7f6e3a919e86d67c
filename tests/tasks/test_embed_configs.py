"""The embed configs of weights that others published, shrunk, through the command line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from jepa.runtime import CONFIG_ROOTS
from probes.cache import FeatureCache

CONFIGS = CONFIG_ROOTS[-1] / "embed"
TIMM = ("--vars.backbone=test_vit", "--vars.size=64", "--data.workers=0", "--data.batch_size=4")
OFFICIAL = (
    "--vars.path=data/k710",
    "--vars.weights=vitl.pt",
    "--vars.size=32",
    "--vars.frames=4",
    "--vars.clips=2",
    "--vars.layers=[0,-1]",
    "--world.frames=4",
    "--world.heads=2",
    "--world.predictor_heads=2",
    "--data.workers=0",
)


@pytest.fixture
def here(workshop):
    workshop.videos()
    return workshop.folder


def test_a_timm_backbone_over_images_and_videos(jepa, here, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", img_size=64).state_dict(), here / "test_vit.safetensors")
    given = (*TIMM, "--vars.weights=test_vit.safetensors")
    assert jepa("embed", "-c", CONFIGS / "timm.yaml", *given, f"--out={tmp_path / 'images'}").code == 0
    cache = FeatureCache(tmp_path / "images")
    assert cache.features.shape == (6, 16, 64) and (cache.meta["steps"], cache.meta["grid"]) == (1, [4, 4])
    assert len(cache.meta["checkpoint_hash"]) == 64 and {"timm", "pillow"} <= set(cache.meta["software"])
    films = (*given, "--vars.frames=3", "--vars.path=data/k710", "--pool=mean", "--layers=[-2,-1]", "--dtype=bfloat16")
    assert jepa("embed", "-c", CONFIGS / "timm.yaml", *films, f"--out={tmp_path / 'films'}").code == 0
    cache = FeatureCache(tmp_path / "films")
    assert cache.features.shape == (6, 2, 64) and np.isfinite(cache.features[:]).all()
    told = jepa("inspect", tmp_path / "films")
    assert told.code == 0 and "layers" in told.out and "bfloat16" in told.out and "6 in 1 shards" in told.out
    again = jepa("embed", "-c", CONFIGS / "timm.yaml", *TIMM, f"--out={tmp_path / 'images'}")
    assert "made from other weights" in again.complaint()
    lost = jepa("embed", "-c", CONFIGS / "timm.yaml", *TIMM, "--checkpoint=nowhere.pt", f"--out={tmp_path / 'lost'}")
    assert "no checkpoint at nowhere.pt" in lost.complaint()


def test_an_official_file_over_videos(jepa, here, tmp_path):
    source = Path(__file__).parents[1] / "checkpoints" / "official.py"
    spec = importlib.util.spec_from_file_location("official", source)
    spec.loader.exec_module(official := importlib.util.module_from_spec(spec))
    torch.manual_seed(0)
    torch.save(official.checkpoint("vjepa2", 2 * 64), here / "vitl.pt")
    run = ("embed", "-c", CONFIGS / "official.yaml", *OFFICIAL)
    assert jepa(*run, f"--out={tmp_path / 'features'}", "--quantise=6").code == 0
    assert jepa(*run, f"--out={tmp_path / 'untrained'}", "--vars.untrained=true").code == 0
    trained, untrained = (FeatureCache(tmp_path / name) for name in ("features", "untrained"))
    for cache in (trained, untrained):
        assert cache.features.shape == (6 * 2 * 3, 2 * 2 * 16, 24) and cache.meta["layers"] == [0, 3]
        assert cache.meta["grid"] == [4, 4] and set(cache.column("view")[:]) == {0, 1, 2}
    assert trained.meta["data"] == untrained.meta["data"] and trained.meta["weights"] != untrained.meta["weights"]
    assert "bytes a token" in jepa("inspect", tmp_path / "features").out
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(trained.features[:4], untrained.features[:4], atol=0.1)
