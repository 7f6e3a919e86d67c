"""How probes are fitted: which labels are known, what the clips of a video make together, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.cli import main
from jepa.errors import InputError
from probes.attentive import AttentiveProbe
from probes.cache import Examples, FeatureCache
from probes.linear import LinearProbe
from probes.protocol import few
from probes.task import probe

SEGMENTS, VIEWS = 5, 4


def episodes_of(y: list[list[int]]) -> Examples:
    """An example for every class number; a list of them is an episode."""
    rows = np.arange(sum(map(len, y)))
    numbers = np.repeat(np.arange(len(y)) * 3 + 1, [len(part) for part in y])
    flat = torch.tensor([each for part in y for each in part])
    return Examples(np.zeros((len(rows), 1, 2)), rows[:, None], 1, flat, numbers, ("label",))


@pytest.mark.parametrize("seed", range(5))
def test_parts_of_the_labels_are_nested_and_hold_every_class(seed):
    examples = episodes_of([[0, 0]] * 30 + [[0, 1]] * 8 + [[2]] * 2)
    parts = [few(examples, part, seed) for part in (0.08, 0.1, 0.3, 0.9)]
    assert [len(np.unique(part.episode)) for part in parts] == [3, 4, 12, 36]
    for smaller, larger in zip(parts, parts[1:]):
        assert set(smaller.episode) < set(larger.episode)
    assert all(set(part.y.tolist()) == {0, 1, 2} for part in parts)
    assert set(parts[2].episode) != set(few(examples, 0.3, seed + 1).episode)


def test_a_part_that_already_holds_every_class_is_drawn_plainly():
    examples = episodes_of([[0], [1]] * 20)
    order = np.random.default_rng(7).permutation(np.unique(examples.episode))
    assert set(few(examples, 0.5, 7).episode) == set(order[:20])


def test_too_few_labels_are_refused():
    examples = episodes_of([[label] for label in range(8)] * 5)
    with pytest.raises(InputError, match=r"labelled=0.1 keeps 4 of 40 .* one of each of 8 classes, give at least 0.2"):
        few(examples, 0.1, 0)
    assert len(few(examples, 0.2, 0)) == 8
    values = Examples(examples.features, examples.rows, 1, examples.y[:, None].float(), examples.episode, ("y",))
    with pytest.raises(InputError, match="labelled=0.001 keeps 0 of 40 .* expected one, give at least 0.025"):
        few(values, 0.001, 0)


def put(cache: Path, name: str, values: np.ndarray) -> None:
    np.save(cache / f"{name}-00000.npy", values)


@pytest.fixture
def state(cache_path):
    return np.array(FeatureCache(cache_path).column("state")[:])


@pytest.fixture
def clips(cache_path, state):
    """A cache whose episodes are videos of a side each, with five segments in four views."""
    cache = FeatureCache(cache_path)
    side = np.repeat(np.arange(len(cache.numbers)) % 2, np.diff(cache.offsets))
    state[:, 2] = side
    put(cache_path, "state", state)
    clip = np.tile(np.arange(SEGMENTS * VIEWS), len(cache.numbers))
    put(cache_path, "segment", clip // VIEWS)
    put(cache_path, "view", clip % VIEWS)
    features = np.random.default_rng(0).standard_normal(cache.features.shape).astype(np.float32)
    features[:, :, 0] += np.where((clip // VIEWS == 3)[:, None], 8 * (2 * side - 1)[:, None], 0)  # only the 4th tells
    put(cache_path, "features", features)
    return cache_path


def test_joint_segments_are_one_example_of_a_video_and_a_view(clips):
    cache = FeatureCache(clips)
    joint = cache.examples("test", "side", classes=2, segments="joint")
    assert joint.rows.shape == (5 * VIEWS, SEGMENTS)
    assert np.array_equal(joint.episode, np.repeat([2, 20, 21, 22, 23], VIEWS))
    segment, view = (cache.column(name)[joint.rows] for name in ("segment", "view"))
    assert (segment == np.arange(SEGMENTS)).all() and (view == view[:, :1]).all()
    assert set(map(tuple, np.stack([joint.episode, view[:, 0]], axis=1).tolist())) == {
        (video, crop) for video in (2, 20, 21, 22, 23) for crop in range(VIEWS)
    }
    z, y = joint[[6]]
    assert z.shape == (1, SEGMENTS, 2, 4)
    assert torch.equal(z[0].flatten(0, 1), torch.from_numpy(cache.features[joint.rows[6]]).flatten(0, 1))
    assert torch.equal(y, cache.examples("test", "side", classes=2).y[[22]])


def test_joint_segments_are_read_at_once_and_views_are_averaged(clips, tmp_path):
    each = probe(clips, LinearProbe(classes=2), "side", tmp_path / "each")
    joint = probe(clips, LinearProbe(classes=2), "side", tmp_path / "joint", segments="joint")
    assert each["examples"] == {"train": 320, "test": 100} and each["accuracy"] < 0.8
    assert joint["examples"] == {"train": 16 * VIEWS, "test": 5 * VIEWS} and joint["accuracy"] == 1
    assert sum(part["examples"] for part in joint["classes"].values()) == 5 and joint["episodes_as_one"] is None
    heads = AttentiveProbe(heads=2, classes=2)
    several = probe(clips, heads, "side", tmp_path / "several", segments="joint", epochs=1, accelerator="cpu")
    assert 0 <= several["accuracy"] <= several["published"]["score"] <= 1


def test_a_video_without_all_segments_is_left_out(clips, caplog):
    cache = FeatureCache(clips)
    view = np.array(cache.column("view")[:])
    view[int(cache.frames("test")[0][0])] = VIEWS  # so the first view has lost its first segment, and this its others
    put(clips, "view", view)
    joint = FeatureCache(clips).examples("test", "side", classes=2, segments="joint")
    assert len(joint) == 5 * VIEWS - 1 and "5 clips" in caplog.text


BASE = ("--probe=probes.linear.LinearProbe", "--accelerator=cpu", "--epochs=1")


def complaint(capsys: pytest.CaptureFixture, *args: object) -> str:
    """What ``jepa probe`` says, in one line, with exit code 2."""
    assert main(["probe", *BASE, *map(str, args)]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jepa: ")]
    assert len(told) == 1
    return told[0]


def test_wrong_labels_are_code_2(cache_path, state, tmp_path, capsys):
    given = (f"--features={cache_path}", f"--out={tmp_path / 'out'}")
    classes = "--probe.classes=2"
    assert "target depth is unknown: expected one of x, y, side" in complaint(capsys, *given, "--target=depth")
    assert "target x is not a class number" in complaint(capsys, *given, "--target=x", classes)
    train, test = (FeatureCache(cache_path).frames(name)[0] for name in ("train", "test"))

    def told(rows: np.ndarray, value: float, *flags: str) -> str:
        changed = state.copy()
        changed[rows, 2] = value
        put(cache_path, "state", changed)
        return complaint(capsys, *given, "--target=side", *flags)

    assert "target side is not a class number: expected one whole number from 0 to 1" in told(train[7:9], 2, classes)
    assert "target side is not a class number" in told(test[:1], -1, classes)
    assert "all 320 training examples have class 1 of target side: expected at least 2" in told(train, 1, classes)
    assert "all 100 test examples have class 0 of target side: expected at least 2" in told(test, 0, classes)
    assert "target side holds NaN or infinity in split train" in told(train[3:4], np.nan)
    assert "target side is constant over the test episodes" in told(test, 0)
    assert not (tmp_path / "out").exists()


def test_wrong_features_are_code_2(cache_path, tmp_path, capsys):
    given = (f"--out={tmp_path / 'out'}", "--target=x")
    here = f"--features={cache_path}"
    assert "nowhere is not a feature cache" in complaint(capsys, *given, f"--features={tmp_path / 'nowhere'}")
    assert "no column segment" in complaint(capsys, *given, here, "--segments=joint")
    assert "k=999 neighbours among 320" in complaint(
        capsys, *given, here, "--probe=probes.neighbours.NeighbourProbe", "--probe.k=999"
    )
    features = np.array(FeatureCache(cache_path).features[:])
    features[FeatureCache(cache_path).frames("test")[0][4]] = np.nan
    put(cache_path, "features", features)
    assert "the feature cache holds NaN or infinity near row" in complaint(capsys, *given, here)
    meta = json.loads((cache_path / "meta.json").read_text())
    meta["splits"]["val"] += meta["splits"]["test"]
    meta["splits"]["test"] = []
    (cache_path / "meta.json").write_text(json.dumps(meta))
    assert "split test of" in (told := complaint(capsys, *given, here)) and "is empty" in told
    assert not (tmp_path / "out").exists()


def test_wrong_baselines_and_seeds_are_code_2(cache_path, world, splits, tmp_path, capsys):
    given = (f"--out={tmp_path / 'out'}", "--target=x", f"--features={cache_path}")
    told = complaint(capsys, *given, f"--baselines={{pixels: {tmp_path / 'none'}}}")
    assert f"there is no feature cache at {tmp_path / 'none'}" in told and "--baselines=null" in told
    assert "jepa embed -c embed/pixels_NAME" in told
    other = tmp_path / "run1"
    shutil.copytree(cache_path, tmp_path / "run0"), shutil.copytree(cache_path, other)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"data": "other"}))
    assert f"baseline random {other} differs from" in complaint(capsys, *given, f"--baselines.random={other}")
    seeds = (f"--features={tmp_path}/run{{seed}}", "--seeds=2")
    assert f"features {other} differs from {tmp_path / 'run0'} in data" in complaint(capsys, *given, *seeds)
    (other / "meta.json").write_text(json.dumps(meta | {"width": 2}))
    assert f"features {other} are of another encoder than" in complaint(capsys, *given, *seeds)
    assert "is not a feature cache" in complaint(capsys, *given, *seeds, "--seeds=3")
    assert "seeds=0" in complaint(capsys, *given, "--seeds=0")
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_code_2(cache_path, tmp_path, capsys):
    given = ("--target=side", f"--features={cache_path}", "--probe.classes=2", f"--out={tmp_path / 'out'}")
    assert "epochs=0" in complaint(capsys, *given, "--epochs=0")
    for labelled in ("0", "1.5", "[0.5, -1]", "[]"):
        assert "labelled=" in complaint(capsys, *given, f"--labelled={labelled}")
    assert "labelled=0.01 keeps 0 of 16 training episodes" in complaint(capsys, *given, "--labelled=0.01")
    gradient = ("--probe=probes.attentive.AttentiveProbe", "--labelled=0.06")
    assert "expected at least 2" in complaint(capsys, *given, "--target=x", *gradient, "--probe.classes=0")
    (tmp_path / "file").write_text("")
    for out in ("file", "file/deep/er"):
        assert "cannot be written" in complaint(capsys, *given, f"--out={tmp_path / out}")
    assert "without {seed}" in complaint(capsys, *given, f"--out={tmp_path}/run{{seed}}")
    assert not (tmp_path / "out").exists()
