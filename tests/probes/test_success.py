from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from jepa.schema import EvalSpec, ObservationSpec, Specs
from probes import cache, detection, protocol, score, training
from probes.cache import FeatureCache
from probes.detection import area, ranked, threshold
from probes.pairs import _pairs_of, pairs, rule
from probes.saved import load
from probes.score import Answers
from probes.success import SuccessProbe
from probes.task import probe


def near(state, goal):
    return (state[:, 0] - goal[:, 0]).abs() < 0.9


def answers(p, y, episode=None, limit=0.5):
    p = torch.as_tensor(p, dtype=torch.float64)
    episode = np.arange(len(p)) % 10 if episode is None else episode
    scores = torch.stack([(1 - p).log(), p.log()], dim=1)
    return Answers(scores, torch.as_tensor(y), episode, torch.tensor(limit), ("success",))


def test_auc_is_one_on_what_can_be_told_apart_and_a_half_on_noise():
    y = torch.arange(400) % 2
    told = detection.detection([answers(0.2 + 0.6 * y, y)], [0.5]).numbers
    assert told["auc"] == 1 and told["average_precision"] == 1 and told["at_threshold"]["accuracy"] == 1
    noise = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    y = torch.arange(20_000) % 2
    told = detection.detection([answers(noise, y, np.arange(20_000) // 200)], [0.5]).numbers
    assert told["auc"] == pytest.approx(0.5, abs=0.01) == told["average_precision"]
    assert told["auc_interval"][0] < 0.5 < told["auc_interval"][1]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_auc_and_precision_agree_with_their_definitions():
    rng = np.random.default_rng(0)
    p, y = rng.integers(1, 20, 300) / 20, rng.integers(0, 2, 300)  # many equal scores
    order = p[y == 1][:, None] - p[y == 0][None]
    assert area(answers(p, y)) == pytest.approx(((order > 0) + 0.5 * (order == 0)).mean())
    values, precision, before = np.unique(p)[::-1], 0.0, 0.0
    for value in values:
        taken = p >= value
        recall = (y[taken] == 1).sum() / (y == 1).sum()
        precision += (recall - before) * (y[taken] == 1).mean()
        before = recall
    found = detection.detection([answers(p, y)], [0.5]).numbers
    assert found["average_precision"] == pytest.approx(precision)
    assert np.allclose(ranked(np.array([0.0, 2.0]), np.array([2.0, 0.0])), 1)


def test_the_bootstrap_resamples_episodes():
    """Its interval agrees with brute force."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(12), 25)
    y = rng.integers(0, 2, 300)
    p = np.clip(0.5 + 0.1 * (y - 0.5) + 0.15 * rng.standard_normal(12)[episode] + 0.1 * rng.standard_normal(300), 0.01,
                0.99)  # fmt: skip
    told = detection.detection([answers(p, y, episode)], [0.5]).numbers["auc_interval"]
    areas = []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(episode == e) for e in rng.choice(12, 12)])
        areas.append(area(answers(p[rows], y[rows], episode[rows])))
    assert np.allclose(told, np.percentile(areas, [2.5, 97.5]), atol=0.02)


def test_counts_by_episode_are_the_counts_of_examples(monkeypatch):
    """In any order of the examples and with any numbers of the episodes, without a row of counts for each example."""
    rng, n = np.random.default_rng(1), 20_000
    monkeypatch.setattr(score, "RESAMPLES", 30)
    episode, y = rng.choice([3, 40, 41, 7], n), rng.integers(0, 2, n)
    p = np.clip(0.5 + 0.2 * (y - 0.5) + 0.05 * episode / 41 + 0.1 * rng.standard_normal(n), 0.01, 0.99)
    given = answers(p, y, episode)
    tracemalloc.start()
    found = detection.draws(detection.certainty(given.prediction), given, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * 2 * detection.BINS, "bytes; a number for each example and bin takes eight times as much"
    times = np.random.default_rng(5).multinomial(4, np.full(4, 1 / 4), size=30)
    for row, drawn in zip(found[1:4], times):
        rows = np.concatenate([np.tile(np.flatnonzero(episode == e), k) for e, k in zip([3, 7, 40, 41], drawn)])
        assert row[0] == pytest.approx(area(answers(p[rows], y[rows])), abs=1e-3)


def test_the_threshold_gets_most_right():
    p, y = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9]), torch.tensor([0, 0, 1, 1, 1])
    assert threshold(p, y) == pytest.approx(0.25)
    assert threshold(p, 1 - y) in (0, 1) and threshold(p, torch.ones(5, dtype=torch.int64)) < 0.1
    rng = torch.Generator().manual_seed(0)
    p, y = torch.rand(200, generator=rng), (torch.rand(200, generator=rng) < 0.4).long()
    best = max(float(((p >= limit).long() == y).double().mean()) for limit in torch.linspace(0, 1.01, 5000))
    assert detection.decisions(p, y, threshold(p, y))["accuracy"] == pytest.approx(best)


def test_pairs_are_balanced_near_and_of_one_episode():
    state = np.cumsum(np.random.default_rng(0).uniform(-1, 1, (4, 30, 2)).astype(np.float32), axis=1).reshape(-1, 2)
    bounds = [(0, 30), (30, 60), (90, 120)]
    rows, y = pairs(state, bounds, near, reach=6, seed=0)
    assert (y == 1).sum() == (y == 0).sum() > 20 and y.dtype == torch.int64
    assert torch.equal(near(*(torch.from_numpy(state[rows[:, k]]) for k in (0, 1))), y == 1)
    gap = np.abs(rows[:, 0] - rows[:, 1])
    assert gap.min() >= 1 and gap.max() <= 6
    assert (rows[:, 0] // 30 == rows[:, 1] // 30).all() and not (rows // 30 == 2).any()
    assert len(np.unique(rows[:, 0])) == len(rows)  # a frame once
    assert np.array_equal(rows, pairs(state, bounds, near, 6, 0)[0])
    assert not np.array_equal(rows, pairs(state, bounds, near, 6, 1)[0])


@pytest.mark.parametrize("reach", [1, 3, 50, 10**12])
def test_pairs_are_those_of_the_whole_table(reach):
    """An independent way to the same candidates, in the same order, so that a seed keeps its pairs."""
    states = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (12, 2)))
    frame, goal = (index.flatten() for index in np.indices((12, 12)))
    close = (np.abs(frame - goal) <= reach) & (frame != goal)
    seen = []
    found = _pairs_of(states, lambda a, b: seen.append((a, b)) or near(a, b), reach, np.random.default_rng(0))
    assert all(torch.equal(mine, states[table[close]]) for mine, table in zip(seen[0], (frame, goal)))
    assert (np.abs(found[:, 0] - found[:, 1]) <= reach).all() and (found[:, 0] != found[:, 1]).all()


def test_a_long_episode_takes_memory_for_what_is_within_reach():
    states = torch.arange(4000.0)[:, None] % 2
    tracemalloc.start()
    _pairs_of(states, near, 2, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000**2, "bytes, one for each pair of frames"


def test_pairs_that_do_not_exist_are_named():
    state = np.zeros((10, 2), dtype=np.float32)
    with pytest.raises(InputError, match="no frame has a goal within 3 frames that is out of reach"):
        pairs(state, [(0, 10)], near, 3, 0)
    with pytest.raises(InputError, match="reach=0"):
        pairs(state, [(0, 10)], near, 0, 0)
    action = {"low": (-1.0,), "high": (1.0,), "mean": (0.0,), "std": (1.0,)}
    nowhere = Specs.from_dict({"action": action, "observation": {"height": 4, "width": 4}})
    with pytest.raises(InputError, match="these episodes name none"):
        rule(nowhere)


def test_the_rule_is_that_of_the_environment():
    action = {"low": (-1.0,) * 2, "high": (1.0,) * 2, "mean": (0.0,) * 2, "std": (1.0,) * 2}
    rooms = Specs.from_dict({"action": action, "observation": {"height": 64, "width": 64}})
    rooms = Specs(rooms.action, ObservationSpec(64, 64), EvalSpec("jepa/TwoRooms-v0"))
    state = torch.tensor([[0.2, 0.2, 0.5, 0.35], [0.2, 0.2, 0.5, 0.35]])
    goal = torch.tensor([[0.21, 0.2, 0.5, 0.35], [0.8, 0.2, 0.5, 0.35]])
    assert rule(rooms)(state, goal).tolist() == [True, False]


def test_success_is_read_from_latents_and_decided_by_a_threshold_from_training(cache_path, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "rule", lambda specs: near)
    report = probe(cache_path, SuccessProbe(hidden=32), "success", tmp_path / "out", epochs=60, batch=64, reach=3,
                   lr=[1e-2], accelerator="cpu")  # fmt: skip
    assert report["auc"] > 0.95 and report["average_precision"] > 0.9 and report["metric"] == "auc"
    assert report["at_threshold"]["accuracy"] > 0.85 and report["positives"] == 0.5
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert "SuccessProbe of success: auc" in str(report)

    again, _ = load(tmp_path / "out")
    assert float(again.threshold) == pytest.approx(report["at_threshold"]["threshold"])
    test = FeatureCache(cache_path).examples("test", "success", "goal", 2, 3, seed=1)
    z, y = test[:]
    assert ((again.reached(z[:, :1], z[:, 1:]) == (y == 1)).double().mean()) == pytest.approx(
        report["at_threshold"]["accuracy"]
    )


def test_the_threshold_is_chosen_on_the_episodes_that_chose_the_head(cache_path, tmp_path, monkeypatch):
    held = []
    for module in (training, protocol):
        monkeypatch.setattr(module, "HELD_OUT", 0.3)
        monkeypatch.setattr(module, "hold_out", lambda *given: held.append(cache.hold_out(*given)) or held[-1])
    monkeypatch.setattr(cache, "rule", lambda specs: near)
    probe(cache_path, SuccessProbe(hidden=4), "success", tmp_path / "out", epochs=1, reach=3, accelerator="cpu")
    (_, chose), (_, calibrated) = held
    assert np.array_equal(chose.episode, calibrated.episode) and np.array_equal(chose.rows, calibrated.rows)


def test_a_probe_of_success_reads_no_other_target(cache_path, tmp_path):
    with pytest.raises(InputError, match="is not a class number"):
        probe(cache_path, SuccessProbe(), "x", tmp_path / "out", accelerator="cpu")
    with pytest.raises(InputError, match="set target to success"):
        SuccessProbe().build(torch.zeros(4, 1, 2, 3), torch.zeros(4, dtype=torch.int64))
