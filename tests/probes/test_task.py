from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jepa.errors import InputError
from jepa.tasks.embed import write_cache
from probes import cache, protocol, score
from probes.attentive import AttentiveProbe
from probes.cache import Examples, FeatureCache, hold_out
from probes.linear import LinearProbe
from probes.neighbours import NeighbourProbe
from probes.policy import GoalCloning
from probes.score import Answers
from probes.task import probe
from probes.training import predict


def test_a_known_linear_map_scores_one(cache_path, tmp_path):
    report = probe(cache_path, LinearProbe(ridge=1e-8), "x,y", tmp_path / "out")
    assert report["r2"] > 0.999
    assert report["r2_interval"][0] <= report["r2"] <= report["r2_interval"][1]
    assert report["targets"].keys() == {"x", "y"} and report["error_of_mean"] >= 1
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.json", "row.md", "figure.svg", "probe.safetensors"}


def test_saved_weights_give_the_same_predictions(cache_path, tmp_path):
    probe(cache_path, LinearProbe(), "x", tmp_path / "out")
    test = FeatureCache(cache_path).examples("test", "x")
    again = LinearProbe()
    again.build(test[:][0], test.y)
    again.load_state_dict(load_file(tmp_path / "out" / "probe.safetensors"))
    assert score.point(Answers(*predict(again, test), test.episode, test.y.mean(0))) > 0.999


@pytest.mark.parametrize(
    "wrong", [{"accelerator": "cuda"}, {"halving": 1}, {"epochs": 0}, {"lr": []}, {"seeds": 0}], ids=str
)
def test_settings_of_a_training_are_checked_though_a_closed_form_needs_none(cache_path, tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        probe(cache_path, LinearProbe(), "x", tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def blind(world, episodes, splits, tmp_path):
    """A cache of the same data by an encoder that sees everything but the position."""
    other = type(world)(episodes.specs, seed=1)
    torch.nn.init.normal_(other.weight, std=1e-3)
    with torch.no_grad():
        other.weight[:, :, :2] = 0
    return write_cache(other, episodes, splits, tmp_path / "blind")


def test_baselines_are_fitted_alike_and_the_gain_is_paired(cache_path, blind, tmp_path):
    both = {"untrained": blind, "itself": cache_path}
    report = probe(cache_path, LinearProbe(), "x", tmp_path / "out", baselines=both)
    other, same = report["baselines"]["untrained"], report["baselines"]["itself"]
    assert report["r2"] > 0.99 > 0.1 > other["r2"]
    assert other["seeds"][0]["features"]["weights"] != report["seeds"][0]["features"]["weights"]
    assert other["gain"] == pytest.approx(report["r2"] - other["r2"])
    assert other["gain_interval"][0] <= other["gain"] <= other["gain_interval"][1]
    assert same["r2"] == report["r2"] and same["gain_interval"] == [0, 0]
    assert f"untrained: {other['r2']:.3f}" in str(report) and len(str(report).splitlines()) == 3


def test_several_seeds_are_one_report(cache_path, blind, tmp_path):
    """{seed} in a path is its number from 0 on; what has none is used by all seeds."""
    for number, source in enumerate((cache_path, blind)):
        shutil.copytree(source, tmp_path / f"run{number}/features")
    paths = {"features": tmp_path / "run{seed}/features", "baselines": {"blind": blind}}
    report = probe(probe=LinearProbe(), target="x", out=tmp_path / "out", seed=5, seeds=2, **paths)
    first, second = report["seeds"]
    assert [first["seed"], second["seed"]] == [5, 6] and second["features"]["path"] == str(tmp_path / "run1/features")
    assert first["score"] > 0.99 > second["score"] == pytest.approx(report["baselines"]["blind"]["seeds"][1]["score"])
    assert report["r2"] == pytest.approx((first["score"] + second["score"]) / 2)
    low, high = report["r2_interval"]
    assert low <= second["score"] and first["score"] <= high, "a draw may hold one seed twice"
    assert "2 seeds" in str(report) and (tmp_path / "out/row.md").read_text().splitlines()[2].endswith("| 5 | 2 |")


def test_seeds_repeat_with_other_labels(cache_path, tmp_path):
    options = {"labelled": 0.25, "seeds": 2}
    report = probe(cache_path, LinearProbe(classes=2), "side", tmp_path / "out", seed=3, **options)
    alone = [probe(cache_path, LinearProbe(classes=2), "side", tmp_path / f"{seed}", seed=seed, labelled=0.25)
             for seed in (3, 4)]  # fmt: skip
    assert [part["score"] for part in report["seeds"]] == [part["accuracy"] for part in alone]
    assert report["confusion"] == (np.array(alone[0]["confusion"]) + alone[1]["confusion"]).tolist()


@pytest.mark.parametrize("kind", [LinearProbe, NeighbourProbe, AttentiveProbe])
def test_every_probe_tells_the_side(cache_path, tmp_path, kind):
    report = probe(cache_path, kind(classes=2), "side", tmp_path / "out", epochs=25, batch=32, lr=[3e-2],
                   accelerator="cpu")  # fmt: skip
    assert report["accuracy"] > 0.85 and report["accuracy"] > report["accuracy_of_most_common"]
    each = report["classes"].values()
    assert report["classes"].keys() == {"0", "1"} and sum(part["examples"] for part in each) == 100
    assert sum(part["accuracy"] * part["examples"] for part in each) == pytest.approx(100 * report["accuracy"])
    assert f"{kind.__name__} of side: accuracy {report['accuracy']:.3f} [" in str(report)
    assert f"most common class {report['accuracy_of_most_common']:.3f}" in str(report)


def test_few_labels_are_whole_episodes_drawn_by_the_seed(cache_path, tmp_path):
    whole = probe(cache_path, LinearProbe(), "x", tmp_path / "whole")
    few = probe(cache_path, LinearProbe(), "x", tmp_path / "few", labelled=0.5)
    assert few["episodes"]["train"] == round(0.5 * whole["episodes"]["train"]) and few["settings"]["labelled"] == [0.5]
    assert few["episodes"]["test"] == whole["episodes"]["test"]


def test_a_learning_curve_ends_at_the_headline(cache_path, blind, tmp_path):
    options = {"labelled": [1.0, 0.25, 0.5], "baselines": {"untrained": blind}, "seeds": 2}
    report = probe(cache_path, LinearProbe(classes=2), "side", tmp_path / "out", **options)
    curve = report["curve"]
    assert [part["labelled"] for part in curve] == [0.25, 0.5, 1.0] == report["settings"]["labelled"]
    assert [part["episodes"]["train"] for part in curve] == [4, 8, 16] and report["episodes"]["train"] == 16
    for name in ("accuracy", "accuracy_interval"):
        assert curve[-1][name] == report[name]
        assert curve[-1]["baselines"]["untrained"][name] == report["baselines"]["untrained"][name]
    alone = probe(cache_path, LinearProbe(classes=2), "side", tmp_path / "alone", labelled=0.25, seeds=2)
    assert curve[0]["accuracy"] == alone["accuracy"] and alone["curve"] == []
    assert "25 % of the labels (4 episodes)" in str(report)


def test_gradient_regression_and_the_choice_of_head(cache_path, tmp_path):
    report = probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / "out", epochs=30, batch=32, lr=[1e-7, 1e-2],
                   accelerator="cpu")  # fmt: skip
    assert report["r2"] > 0.8
    head = report["seeds"][0]["head"]
    assert head["lr"] == 1e-2 and head["heads"] == 2


def test_the_published_choice_of_head_is_named_and_flatters(cache_path, tmp_path):
    options = {"epochs": 4, "batch": 32, "accelerator": "cpu"}
    report = probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / "out", lr=[1e-3, 1e-2, 3e-2], **options)
    assert report["selected"] == {"score": report["r2"], "rule": "best on held-out training episodes"}
    alone = [probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / str(lr), lr=[lr], **options)
             for lr in (1e-3, 1e-2, 3e-2)]  # fmt: skip
    assert report["published"]["score"] == pytest.approx(max(part["r2"] for part in alone), abs=1e-3)
    assert report["published"]["score"] >= report["r2"] and "as published (flatters)" in report["published"]["rule"]
    assert f"as published (flatters): {report['published']['score']:.3f}" in str(report)
    assert alone[0]["published"] is None and "published" not in str(alone[0])


def test_heads_that_do_not_fit_into_memory_are_asked_one_after_another(cache_path, tmp_path, monkeypatch):
    options = {"epochs": 1, "batch": 32, "accelerator": "cpu"}
    whole = probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / "whole", **options)
    monkeypatch.setattr(protocol, "MEMORY", 1)
    pieces = probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / "pieces", **options)
    assert pieces["published"]["score"] == pytest.approx(whole["published"]["score"], abs=1e-6)


def test_cloning_beats_the_mean_action_when_actions_point_at_the_goal(episodes, world, splits, tmp_path):
    drift = np.random.default_rng(0).uniform(-1, 1, (len(episodes), 1, 2))
    episodes.action[:] = 0.2 * episodes.action + 0.8 * drift  # every episode has a direction
    episodes.position[:] = 3 * drift + np.cumsum(episodes.action, axis=1) * 0.5
    features = write_cache(world, episodes, splits, tmp_path / "cache")
    report = probe(features, GoalCloning(hidden=32), "action", tmp_path / "out", epochs=40, batch=64, lr=[1e-2],
                   accelerator="cpu")  # fmt: skip
    assert report["error"] < 0.5 * report["error_of_mean"]


def test_the_same_seed_gives_the_same_report(cache_path, tmp_path):
    options = {"epochs": 2, "lr": [1e-3], "accelerator": "cpu"}
    first, second = (probe(cache_path, GoalCloning(16), "action", tmp_path / name, **options) for name in "ab")
    assert first["r2"] == second["r2"]


def test_the_held_out_part_shares_no_episode(cache_path):
    rest, held = hold_out(FeatureCache(cache_path).examples("train", "x"), 0.1, seed=0)
    assert not set(rest.episode) & set(held.episode) and len(rest) + len(held) == 16 * 20
    assert len(set(held.episode)) == 2


def test_memory_is_bounded_by_reading_in_pieces(cache_path, tmp_path, monkeypatch):
    whole = probe(cache_path, LinearProbe(), "x,y", tmp_path / "whole")
    asked = []

    def watched(self, index):
        asked.append(len(self.rows[index]))
        return read(self, index)

    read = Examples.stored
    monkeypatch.setattr(Examples, "stored", watched)
    monkeypatch.setattr(cache, "MEMORY", 4 * 8 * 50)  # fifty latents of eight numbers
    pieces = probe(cache_path, LinearProbe(), "x,y", tmp_path / "pieces")
    probe(cache_path, AttentiveProbe(heads=2), "x,y", tmp_path / "out", epochs=1, batch=32, accelerator="cpu")
    assert max(asked) == 50 and pieces["r2"] == pytest.approx(whole["r2"], abs=1e-6)
