"""The configs of anticipation and of dense probing, shrunk, from videos to reports, through the command line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from filmed import film

from jepa.tasks.features import read_meta
from probes.cache import FeatureCache
from probes.saved import load

SMALL = ("--vars.size=64", "--vars.frames=4")
QUICK = ("--accelerator=cpu", "--epochs=1", "--lr=[0.001,0.01]", "--weight_decay=[0.01]")


@pytest.fixture(scope="module")
def digits(workshop):
    """The small films of the workshop, with a map of every one: half of it is a digit."""
    checkpoint = workshop.checkpoint("moving_digits")
    for split in ("train", "test"):
        for number, file in enumerate(sorted((workshop.folder / "data" / "moving_digits" / split).glob("*.mp4"))):
            maps = np.zeros((24, 36, 48), np.uint8)
            maps[:, :, 8 * number :] = 1
            maps[:, 0, 0] = 255
            np.save(file.with_suffix(".npy"), maps)
    return checkpoint


def test_dense(digits, jepa, workshop, tmp_path):
    runs = workshop.folder / "runs" / "moving_digits"
    for name, untrained in (("features_maps", "false"), ("features_maps_untrained", "true")):
        options = (f"--out={runs / name}", f"--world.untrained={untrained}", "--vars.maps=.")
        assert jepa("embed", "-c", "embed/moving_digits", *options, *SMALL).code == 0
    cache = FeatureCache(runs / "features_maps")
    held = np.asarray(cache.column("map")[np.arange(12)])
    assert held.shape == (12, 2 * 8 * 8) and held.dtype == np.uint8 and set(np.unique(held)) <= {0, 1}
    assert held[0].min() == 1 and 0.3 < held[:6].mean() < 0.9  # the first film is a digit from edge to edge
    answer = jepa("probe", "-c", "probe/dense", f"--out={tmp_path}")
    assert answer.code == 0 and "DenseProbe of map: mean_iou" in answer.out + answer.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["metric"] == "mean_iou" and 0 < report["mean_iou"] <= 1 and set(report["classes"]) == {"0", "1"}
    assert math.isfinite(report["baselines"]["untrained"]["gain"])
    again, _ = load(tmp_path)
    test = cache.examples("test", "map", classes=2)
    assert again.answer(again(test[:][0])).shape == test.y.shape
    swept = jepa("probe", "-c", "probe/dense", f"--out={tmp_path / 'swept'}", "--probe.by=gradient", *QUICK)
    assert swept.code == 0 and "mean_iou" in swept.out + swept.err
    one = jepa("probe", "-c", "probe/dense", f"--out={tmp_path / 'no'}", "--probe.classes=0").complaint()
    assert "set classes to their number" in one
    plain = workshop.features("moving_digits")
    assert "no column map" in jepa("probe", "-c", "probe/dense", f"--features={plain}", "--baselines=null").complaint()
    pooled = ("--vars.maps=.", "--pool=space", f"--out={tmp_path / 'pooled'}", *SMALL)
    assert "set pool to none" in jepa("embed", "-c", "embed/moving_digits", *pooled).complaint()


@pytest.fixture(scope="module")
def kitchen(workshop):
    """Six films of five seconds, four actions in each; the last pair of the last film is in no training film."""
    checkpoint = workshop.checkpoint("moving_digits")
    folder = workshop.folder / "data" / "epic_kitchens"
    (folder / "annotations").mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, numbers in (("train", range(1, 5)), ("validation", range(5, 7))):
        lines = ["video_id,participant_id,start_timestamp,stop_timestamp,start_frame,stop_frame,verb_class,noun_class"]
        for number in numbers:
            coarse = random.integers(256, size=(25, 6, 8, 3), dtype=np.uint8)
            place = folder / f"P0{number}" / "videos" / f"P0{number}_01.mp4"
            place.parent.mkdir(parents=True)
            film(place, coarse.repeat(12, axis=1).repeat(12, axis=2), rate=5)
            for action, start in enumerate((2.0, 2.5, 3.0, 3.5)):
                verb, noun = 3 + action % 2, 9 if (number, action) == (6, 3) else 5 + action // 2
                times = f"00:00:0{start:.2f},00:00:0{start + 0.8:.2f},{5 * start:.0f},{5 * (start + 0.8):.0f}"
                lines.append(f"P0{number}_01,P0{number},{times},{verb},{noun}")
        (folder / "annotations" / f"EPIC_100_{split}.csv").write_text("\n".join(lines) + "\n")
    return checkpoint


def embedded(jepa, workshop, name, weights, *options):
    out = workshop.folder / "runs" / "epic_kitchens" / name
    small = (f"--vars.weights={weights}", "--data.workers=0", f"--out={out}", *SMALL)
    answer = jepa("embed", "-c", "embed/anticipation", *small, *options)
    assert answer.code == 0, answer.err
    return out


def test_anticipation(kitchen, jepa, workshop, tmp_path):
    out = embedded(jepa, workshop, "features", kitchen)
    untrained = embedded(jepa, workshop, "features_untrained", kitchen, "--vars.untrained=true")
    published = embedded(jepa, workshop, "features_published", kitchen, "--vars.protocol=published_stop",
                         "--vars.point=[0.0,0.25]")  # fmt: skip
    meta = read_meta(out)
    assert (meta["steps"], meta["tokens"]) == (3, 64)  # two of the clip, and the forecast
    assert {split: len(videos) for split, videos in meta["splits"].items()} == {"train": 4, "test": 2}
    cache = FeatureCache(out)
    test = cache.examples("test", "verb,noun,action")
    assert len(cache.examples("train", "verb").y) == 4 * 4 * 4 and len(test.y) == 2 * 4  # four draws, and one
    assert test.y.tolist()[:4] == [[0, 0, 0], [1, 0, 2], [0, 1, 1], [1, 1, 3]]
    assert test.y.tolist()[7] == [1, 2, 4]  # a noun and a pair that training has not
    ahead = np.asarray(cache.column("ahead")[np.arange(64)])
    assert (np.asarray(cache.column("ahead")[np.arange(64, 72)]) == 8).all() and 2 <= ahead.min() < ahead.max() <= 14
    assert len({read_meta(folder)["data"] for folder in (out, untrained)}) == 1 != read_meta(published)["data"]
    answer = jepa("probe", "-c", "probe/anticipation", f"--out={tmp_path}", "--vars.heads=2", *QUICK)
    assert answer.code == 0 and "AnticipationProbe of verb,noun,action: recall_at_5" in answer.out + answer.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["answers"]["action"]["of_unseen_classes"] == 1 == report["as_published"]["left_out"]
    # four of five classes are there, and five may be named
    assert report["recall_at_5"] == pytest.approx(4 / 5) and report["as_published"]["recall_at_5"]["action"] == 1
    assert report["answers"]["verb"]["recall_at_5"] == 1 and 0 <= report["answers"]["verb"]["top_1"] <= 1
    again, _ = load(tmp_path)
    assert again(test[:2][0]).shape == (2, 2 + 2 + 4)
    joint = jepa("probe", "-c", "probe/anticipation", f"--out={tmp_path / 'no'}", "--vars.heads=3", *QUICK).complaint()
    assert "heads=3 on latents of width 16" in joint


def test_the_same_cache_is_kept_and_another_rule_is_another_cache(kitchen, jepa, workshop):
    first = embedded(jepa, workshop, "again", kitchen)
    before = (first / "meta.json").stat().st_mtime_ns
    assert embedded(jepa, workshop, "again", kitchen) == first and (first / "meta.json").stat().st_mtime_ns == before
    same = (f"--vars.weights={kitchen}", f"--out={first}", "--data.workers=0", *SMALL)
    for option, different in (("--vars.protocol=published_stop", "data"), ("--world.token=1", "weights")):
        told = jepa("embed", "-c", "embed/anticipation", *same, option).complaint()
        assert f"made from other {different}" in told
