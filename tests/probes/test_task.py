from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jepa.errors import InputError
from jepa.tasks.embed import write_cache
from probes import cache, score
from probes.attentive import AttentiveProbe
from probes.cache import Examples, FeatureCache, hold_out
from probes.linear import LinearProbe
from probes.neighbours import NeighbourProbe
from probes.policy import BehaviourCloning
from probes.task import probe
from probes.training import ProbeTask, predict


def test_a_known_linear_map_scores_one(cache_path, tmp_path):
    report = probe(cache_path, LinearProbe(ridge=1e-8), "x,y", tmp_path / "out")
    assert report["r2"] > 0.999
    assert report["r2_interval"][0] <= report["r2"] <= report["r2_interval"][1]
    assert report["targets"].keys() == {"x", "y"} and report["error_of_mean"] >= 1
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert not list((tmp_path / "out").glob("*.partial"))


def test_saved_weights_give_the_same_predictions(cache_path, tmp_path):
    probe(cache_path, LinearProbe(), "x", tmp_path / "out")
    test = FeatureCache(cache_path).examples("test", "x")
    again = LinearProbe()
    again.build(test[:][0], test.y)
    again.load_state_dict(load_file(tmp_path / "out" / "probe.safetensors"))
    assert score.regression(*predict(again, test), test.y.mean(0), test.episode, test.names)["r2"] > 0.999


def test_the_baseline_is_fitted_alike_and_must_be_of_the_same_data(cache_path, world, episodes, splits, tmp_path):
    blind = type(world)(episodes.specs, seed=1)
    torch.nn.init.normal_(blind.weight, std=1e-3)
    with torch.no_grad():
        blind.weight[:, :, :2] = 0  # it sees everything but the position
    other = write_cache(blind, episodes, splits, tmp_path / "blind")
    report = probe(cache_path, LinearProbe(), "x", tmp_path / "out", baseline=other)
    assert report["r2"] > 0.99 > 0.1 > report["baseline"]["r2"]
    assert report["baseline"]["features"]["weights"] != report["features"]["weights"]
    gain = report["gain"]
    assert gain["gain"] == pytest.approx(report["r2"] - report["baseline"]["r2"])
    assert gain["gain_interval"][0] <= gain["gain"] <= gain["gain_interval"][1]

    wrong = write_cache(blind, episodes, {"train": [0, 1, 2], "test": [3, 4]}, tmp_path / "wrong")
    with pytest.raises(InputError, match="differs from .* in splits"):
        probe(cache_path, LinearProbe(), "x", tmp_path / "again", baseline=wrong)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", [LinearProbe, NeighbourProbe, AttentiveProbe])
def test_every_probe_tells_the_side(cache_path, tmp_path, kind):
    report = probe(cache_path, kind(classes=2), "side", tmp_path / "out", epochs=25, batch=32, lr=[3e-2],
                   accelerator="cpu")  # fmt: skip
    assert report["accuracy"] > 0.85 and report["accuracy"] > report["accuracy_of_most_common"]
    each = report["classes"].values()
    assert report["classes"].keys() == {"0", "1"} and sum(part["examples"] for part in each) == 100
    assert sum(part["accuracy"] * part["examples"] for part in each) == pytest.approx(100 * report["accuracy"])
    assert f"{kind.__name__} of side: accuracy {report['accuracy']:.3f} [" in str(report)
    assert str(report).endswith(f"most common class {report['accuracy_of_most_common']:.3f}")


def test_few_labels_are_whole_episodes_drawn_by_the_seed(cache_path, tmp_path):
    whole = probe(cache_path, LinearProbe(), "x", tmp_path / "whole")
    few = probe(cache_path, LinearProbe(), "x", tmp_path / "few", labelled=0.5)
    assert few["episodes"]["train"] == round(0.5 * whole["episodes"]["train"]) and few["settings"]["labelled"] == 0.5
    assert few["episodes"]["test"] == whole["episodes"]["test"]
    with pytest.raises(InputError, match="labelled=0"):
        probe(cache_path, LinearProbe(), "x", tmp_path / "none", labelled=0)


def test_gradient_regression_and_the_choice_of_head(cache_path, tmp_path):
    report = probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / "out", epochs=30, batch=32, lr=[1e-7, 1e-2],
                   accelerator="cpu")  # fmt: skip
    assert report["r2"] > 0.8
    assert report["head"]["lr"] == 1e-2 and report["head"]["heads"] == 2


def test_cloning_beats_the_mean_action_when_actions_point_at_the_goal(episodes, world, splits, tmp_path):
    drift = np.random.default_rng(0).uniform(-1, 1, (len(episodes), 1, 2))
    episodes.action[:] = 0.2 * episodes.action + 0.8 * drift  # every episode has a direction
    episodes.position[:] = 3 * drift + np.cumsum(episodes.action, axis=1) * 0.5
    features = write_cache(world, episodes, splits, tmp_path / "cache")
    report = probe(features, BehaviourCloning(hidden=32), "action", tmp_path / "out", epochs=40, batch=64, lr=[1e-2],
                   accelerator="cpu")  # fmt: skip
    assert report["error"] < 0.5 * report["error_of_mean"]


def test_the_same_seed_gives_the_same_report(cache_path, tmp_path):
    options = {"epochs": 2, "lr": [1e-3], "accelerator": "cpu"}
    first, second = (probe(cache_path, BehaviourCloning(16), "action", tmp_path / name, **options) for name in "ab")
    assert first["r2"] == second["r2"]


def test_heads_train_as_if_alone():
    torch.manual_seed(0)
    z, y = torch.randn(64, 1, 1, 4), torch.randn(64, 2)
    built = BehaviourCloning(8)
    built.build(z.expand(-1, 2, -1, -1), y)
    task = ProbeTask(built, lr=[1e-2, 1e-3])
    pair = z.expand(-1, 2, -1, -1)
    task._losses((pair, y)).sum().backward()
    together = [parameter.grad.clone() for parameter in task.heads[1].parameters()]
    task.zero_grad()
    task.heads[1].loss(task.heads[1](pair), y).backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(together, task.heads[1].parameters()))


def test_the_held_out_part_shares_no_episode(cache_path):
    rest, held = hold_out(FeatureCache(cache_path).examples("train", "x"), 0.1, seed=0)
    assert not set(rest.episode) & set(held.episode) and len(rest) + len(held) == 16 * 20
    assert len(set(held.episode)) == 2


def test_r2_agrees_with_its_definition_and_resampling_with_brute_force():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(60, 2, generator=generator) + 100
    guess = y + 0.5 * torch.randn(60, 2, generator=generator)
    episode = np.repeat(np.arange(6) * 7, 10)
    result = score.regression(guess, y, y.mean(0), episode, ("a", "b"))
    expected = 1 - ((guess - y) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    assert np.allclose([result["targets"][name]["r2"] for name in "ab"], expected.numpy(), atol=1e-4)
    rng, draws = np.random.default_rng(1), []
    for _ in range(2000):
        rows = np.concatenate([np.arange(60)[episode == e] for e in rng.choice(np.unique(episode), 6)])
        t, g = y[rows].double(), guess[rows].double()
        draws.append(float((1 - ((g - t) ** 2).sum(0) / ((t - t.mean(0)) ** 2).sum(0)).mean()))
    assert np.allclose(result["r2_interval"], np.percentile(draws, [2.5, 97.5]), atol=0.02)


def test_the_clips_of_a_video_vote():
    """Two of three clips are wrong by little, one is right by much: the video is right. The other is wrong."""
    scores = torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.95, 0.05], [0.0, 1.0], [0.3, 0.7]]).log()
    episode = np.array([7, 7, 7, 9, 9])
    result = score.classification(scores, torch.tensor([0, 0, 0, 0, 0]), 0, episode)
    assert result["accuracy"] == pytest.approx(0.2) and result["episodes_as_one"]["accuracy"] == 0.5
    assert result["classes"] == {"0": {"accuracy": pytest.approx(0.2), "examples": 5}}
    changing = torch.tensor([0, 1, 0, 0, 0])
    assert score.classification(scores, changing, 0, episode)["episodes_as_one"] is None
    assert score.classification(scores, changing, 0, np.arange(5))["episodes_as_one"] is None


def test_a_gain_is_measured_on_the_same_draws():
    """Where both are right on the same half of the episodes, the gain is certain, though neither accuracy is."""
    y, episode = torch.zeros(40, dtype=torch.int64), np.arange(40)
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    half = torch.cat([right.expand(20, 2), wrong.expand(20, 2)])
    same = score.gain(half, half.clone(), y, episode, classes=True)
    assert same == {"gain": 0.0, "gain_interval": [0.0, 0.0]}
    more = score.gain(torch.cat([half[:36], right.expand(4, 2)]), half, y, episode, classes=True)
    assert more["gain"] == pytest.approx(0.1) and 0 < more["gain_interval"][0] < 0.1 < more["gain_interval"][1]


def test_a_diverging_head_does_not_slow_the_others():
    """Gradients are clipped head by head."""
    torch.manual_seed(0)
    built = AttentiveProbe(heads=2)
    built.build(torch.randn(8, 1, 2, 4), torch.randn(8, 1))
    task = ProbeTask(built, lr=[1e-3, 1e-2])
    for head, size in zip(task.heads, (1e6, 1e-3)):
        for weight in head.parameters():
            weight.grad = torch.full_like(weight, size)
    task.configure_gradient_clipping(None, 1.0)
    norms = [torch.cat([weight.grad.flatten() for weight in head.parameters()]).norm() for head in task.heads]
    assert norms[0] == pytest.approx(1, abs=1e-3)
    assert all((weight.grad == 1e-3).all() for weight in task.heads[1].parameters())


def test_memory_is_bounded_by_reading_in_pieces(cache_path, tmp_path, monkeypatch):
    whole = probe(cache_path, LinearProbe(), "x,y", tmp_path / "whole")
    asked = []

    def watched(self, index):
        asked.append(len(self.rows[index]))
        return read(self, index)

    read = Examples.__getitem__
    monkeypatch.setattr(Examples, "__getitem__", watched)
    monkeypatch.setattr(cache, "MEMORY", 4 * 8 * 50)  # fifty latents of eight numbers
    pieces = probe(cache_path, LinearProbe(), "x,y", tmp_path / "pieces")
    probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / "out", epochs=1, batch=32, accelerator="cpu")
    assert max(asked) == 50 and pieces["r2"] == pytest.approx(whole["r2"], abs=1e-6)


def test_bad_input_is_named(cache_path, tmp_path):
    with pytest.raises(InputError, match="epochs=0"):
        probe(cache_path, AttentiveProbe(), "x", tmp_path / "out", epochs=0)
    with pytest.raises(InputError, match="k=999 neighbours among 320"):
        probe(cache_path, NeighbourProbe(k=999), "x", tmp_path / "out")
    with pytest.raises(InputError, match="constant over the test episodes"):
        score.regression(torch.zeros(4, 1), torch.ones(4, 1), torch.ones(1), np.arange(4), ("x",))
    assert not (tmp_path / "out").exists()
