"""The benchmark of cached features evaluates a cache as it is on the disk, and what it says is in its file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jepa.errors import InputError
from probes.cache import FeatureCache
from tools.benchmark import main
from tools.benchmarks import features


def test_the_cache_is_one_that_probes_read(tmp_path):
    cache = FeatureCache(features.made(tmp_path / "made", 1500, 16, 5))
    train, test = (cache.examples(split, "label", classes=5) for split in ("train", "test"))
    assert (len(train), len(test)) == (1350, 150) and train.features.dtype == np.float16
    assert set(train.y.tolist()) == set(range(5)) and train[:3][0].shape == (3, 1, 1, 16)


def test_every_evaluation_is_measured(tmp_path, monkeypatch, capsys):
    here = []
    monkeypatch.setattr(features, "_apart", lambda name, cache, classes, threads: (
        here.append(threads), features.evaluate(name, cache, classes))[1])  # fmt: skip
    out = tmp_path / "features.json"
    small = ("--rows=1000", "--width=16", "--classes=5", "--larger=2", "--threads=1")
    assert main(["features", *small, f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    assert [(one["probe"], one["rows"]) for one in found["results"]] == [
        (name, rows) for rows in (1000, 2000) for name in features.PROBES
    ]
    assert all(one["seconds"] > 0 and one["memory"] >= one["memory_of_imports"] > 2**20 for one in found["results"])
    assert min(one["score"] for one in found["results"]) > 0.3 and here == [1] * 6
    assert "k-NN classification of 2,000" in capsys.readouterr().out


def test_a_process_of_its_own_has_so_many_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with features._environment(OMP_NUM_THREADS="2", ANOTHER_OF_MINE="1"):
        import os

        assert os.environ["OMP_NUM_THREADS"] == "2" and os.environ["ANOTHER_OF_MINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "ANOTHER_OF_MINE" not in os.environ


def test_too_little_is_refused():
    with pytest.raises(InputError, match="rows=10"):
        features.features(rows=10)
