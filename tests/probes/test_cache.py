from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from probes.cache import FeatureCache


def test_features_and_targets_belong_to_the_same_frame(cache_path, world, episodes):
    cache = FeatureCache(cache_path)
    rows, ids = cache.frames("test")
    examples = cache.examples("test", "y,x")
    assert np.array_equal(examples.rows[:, 0], rows) and np.array_equal(examples.episode, ids[:, 0])
    z, y = examples[[3, 41, 77]]
    assert z.shape == (3, 1, 2, 4) and z.dtype == torch.float32
    for row, latent, target in zip((3, 41, 77), z, y):
        episode, frame = ids[row]
        sample = episodes.read(episode, np.array([frame]))
        expected = world.encode(type(sample)(video=sample.video[None]))[0]
        assert torch.allclose(latent, expected, atol=1e-5)
        assert torch.equal(target, sample.state[0, [1, 0]])


def test_pairs_lie_a_frame_skip_apart_within_one_episode(cache_path, episodes):
    cache = FeatureCache(cache_path)
    examples = cache.examples("test", "action", reads="next")
    assert (examples.rows[:, 1] - examples.rows[:, 0] == 2).all()
    assert len(examples) == 5 * (20 - 2)
    _, ids = cache.frames("test")
    place = {row: tuple(each) for row, each in zip(cache.frames("test")[0], ids)}
    for (here, there), action in zip(examples.rows, examples.y):
        (episode, frame), (other, _) = place[here], place[there]
        assert episode == other
        assert np.allclose(action, episodes.action[episode, frame : frame + 2].reshape(-1), atol=1e-6)
    assert examples.names == ("action[0][0]", "action[0][1]", "action[1][0]", "action[1][1]")


def test_goals_are_later_frames_of_the_same_episode_within_reach(cache_path):
    cache = FeatureCache(cache_path)
    examples = cache.examples("train", "action", reads="goal", reach=4, seed=1)
    place = {row: tuple(each) for row, each in zip(*cache.frames("train"))}
    steps = np.array([(place[b][1] - place[a][1], place[a][0] == place[b][0]) for a, b in examples.rows])
    assert steps[:, 1].all() and set(steps[:, 0]) == {2, 4, 6, 8}
    again = cache.examples("train", "action", reads="goal", reach=4, seed=1)
    assert np.array_equal(again.rows, examples.rows)


def test_reward_is_summed_over_the_frame_skip(cache_path):
    examples = FeatureCache(cache_path).examples("val", "reward")
    assert torch.equal(examples.y[:3, 0], torch.tensor([1.0, 3.0, 5.0]))


def test_no_episode_is_in_two_splits(cache_path):
    cache = FeatureCache(cache_path)
    sets = [set(cache.examples(split, "x").episode) for split in ("train", "val", "test")]
    rows = [set(cache.examples(split, "action", reads="goal").rows.flatten()) for split in ("train", "val", "test")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not sets[a] & sets[b] and not rows[a] & rows[b]


def test_classes_are_whole_numbers(cache_path):
    cache = FeatureCache(cache_path)
    assert cache.examples("train", "side", classes=2).y.dtype == torch.int64
    with pytest.raises(InputError, match="target x is not a class number"):
        cache.examples("train", "x", classes=2)


def test_what_is_missing_is_named(cache_path, tmp_path):
    cache = FeatureCache(cache_path)
    with pytest.raises(InputError, match="target z is unknown: expected one of x, y, side, state"):
        cache.examples("train", "z")
    with pytest.raises(InputError, match="no split dev, it has train, val, test"):
        cache.examples("dev", "x")
    (cache_path / "proprio-00000.npy").unlink()
    with pytest.raises(InputError, match="no column proprio"):
        cache.examples("train", "proprio")
    with pytest.raises(InputError, match="is not a feature cache"):
        FeatureCache(tmp_path / "nothing")


def test_an_empty_split_and_short_episodes(cache_path):
    meta = json.loads((cache_path / "meta.json").read_text())
    meta["splits"]["val"], meta["splits"]["train"] = [], meta["splits"]["train"] + meta["splits"]["val"]
    (cache_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="split val of .* is empty"):
        FeatureCache(cache_path).examples("val", "x")
    meta["specs"]["action"]["block"] = 20
    (cache_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="no episode of split train is longer than the frame skip 20"):
        FeatureCache(cache_path).examples("train", "action")


def test_missing_labels_and_damaged_features(cache_path):
    path = cache_path / "state-00000.npy"
    state = np.load(path)
    state[FeatureCache(cache_path).frames("train")[0][5], 0] = np.nan
    np.save(path, state)
    with pytest.raises(InputError, match="target x holds NaN"):
        FeatureCache(cache_path).examples("train", "x")
    assert len(FeatureCache(cache_path).examples("train", "y"))

    path = cache_path / "features-00000.npy"
    features = np.load(path)
    features[7] = np.inf
    np.save(path, features)
    examples = FeatureCache(cache_path).examples("train", "y")
    for some in (examples, examples.whole()):
        with pytest.raises(InputError, match="NaN or infinity near row 7"):
            some[:]
    np.save(path, features[:-1])
    with pytest.raises(InputError, match="damaged"):
        FeatureCache(cache_path)


def test_a_truncated_array_and_another_version(cache_path):
    path = cache_path / "features-00000.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="features-00000.npy cannot be read"):
        FeatureCache(cache_path)
    meta = json.loads((cache_path / "meta.json").read_text())
    (cache_path / "meta.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(InputError, match="format .*99"):
        FeatureCache(cache_path)
    (cache_path / "meta.json").write_text(json.dumps({**meta, "version": 2}))
    with pytest.raises(InputError, match="is of format .*2.*, expected .*3.*: remove it and embed again"):
        FeatureCache(cache_path)


def test_examples_are_the_same_from_the_disk_and_from_memory(cache_path):
    held = FeatureCache(cache_path).examples("test", "action", reads="goal", seed=2)
    of_all = len(np.unique(held.rows)) * 2 * 4 * 4
    assert held.whole(of_all - 1) is held
    memory = held.whole(of_all)
    assert memory.whole() is memory and memory.affordable == held.affordable and len(memory) == len(held)
    for index in (slice(3, 40, 7), [5, 5, 1], np.arange(len(held)) % 3 == 0):
        for mine, theirs in zip(memory[index], held[index]):
            assert torch.equal(mine, theirs)
    keep = held.episode == held.episode[-1]
    assert torch.equal(memory.select(keep)[:][0], held.select(keep)[:][0])
    assert np.array_equal(memory.rows, held.rows), "rows keep the numbers that they have in the cache"


def test_memory_needs_no_disk(cache_path):
    memory = FeatureCache(cache_path).examples("train", "x").whole()
    expected = memory[:]
    for path in cache_path.glob("features-*.npy"):
        path.unlink()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(memory[:], expected))
