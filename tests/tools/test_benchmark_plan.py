"""The benchmark of plans compares like with like: the published structures compute what the library does."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from jepa.models.vjepa2_ac import PosePredictor
from jepa.planning import GoalLatent
from tools.benchmark import main
from tools.benchmarks import anytime, searches
from tools.benchmarks.plan import cached
from tools.benchmarks.reference_plan import PublishedLeWM, recomputed
from tools.benchmarks.searches import BLOCK, HORIZON, WIDTH, Setting, decide, default_world, frames, lewm_world, noise

TINY = ("--size=tiny", "--candidates=32", "--iterations=4", "--shape=[48,2,2]", "--grid=3", "--repeats=2")


@pytest.mark.parametrize("once", [False, True])
def test_the_published_rollout_has_our_cost_for_every_candidate(once):
    world = lewm_world("tiny")
    pixels = frames(world)
    raw = torch.randn(1, 7, HORIZON, BLOCK * WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        z, goal = (world.encode(searches.Sample(video=part)) for part in pixels)
        mine = GoalLatent("l2", "last")(world.rollout(z, raw), goal, raw)[0] * z.shape[-1]
        theirs = PublishedLeWM(world, once).cost(z[:, 0, 0], goal[:, 0, 0], raw[0])
    torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)
    assert mine.std() > 1e-4 * mine.mean(), "no action matters: the comparison of elites would be empty"


@pytest.mark.parametrize("once", [False, True])
def test_the_published_search_chooses_our_elites_and_our_plan(once):
    setting = Setting("tiny", candidates=40, iterations=5, repeats=2, device="cpu")
    world = lewm_world("tiny")
    pixels, costs, chosen = frames(world), [], []
    plan = decide(world, setting.planner(), pixels, HORIZON, GoalLatent("l2", "last"), 8, watch=costs.append)
    action = PublishedLeWM(world, once).plan(*pixels, noise(setting, 8), 4, lambda _, best: chosen.append(best))
    for cost, best in zip(costs, chosen):
        assert set(best.tolist()) == set(cost[0].topk(4, largest=False).indices.tolist())
    assert len(chosen) == 5
    torch.testing.assert_close(action, plan.action[0], atol=1e-5, rtol=1e-5)


def test_other_elites_are_noticed():
    setting = Setting("tiny", candidates=40, iterations=3, repeats=2, device="cpu")
    world = lewm_world("tiny")
    wrong = noise(setting, 1)  # ours are drawn from seed 0
    with pytest.raises(AssertionError, match="other elites from iteration 0 on"):
        searches._same_elites(setting, world, frames(world), wrong, (PublishedLeWM(world),))


@torch.inference_mode()
def test_the_cache_of_vjepa2_ac_is_the_rollout_that_computes_all_frames_anew():
    torch.manual_seed(0)
    predictor = PosePredictor(48, 48, 2, 2, (3, 3))
    predictor.bind(7, 7)
    z, (action, pose) = torch.randn(1, 9, 48), torch.randn(2, 5, 3, 7)
    anew, kept = recomputed(predictor, z, action, pose), cached(predictor, z, action, pose)
    assert anew.shape == (5, 3, 9, 48)
    torch.testing.assert_close(kept, anew, atol=1e-5, rtol=1e-5)
    assert (anew[0] - anew[1]).abs().max() > 1e-3, "no action matters"


def test_plans_are_compared(tmp_path, capsys):
    out = tmp_path / "deep/plan.json"
    assert main(["plan", "--parts=[lewm,default,cache,environments]", *TINY, "--count=3", f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    results = found["results"]
    assert results["lewm"]["iterations with identical elites"] == 4
    assert results["lewm"]["candidate-steps"] == 32 * 4 * HORIZON
    assert results["default"]["world"] == "drawn weights"
    assert results["environments"]["largest difference of the plans"] < 1e-4
    for horizon in ("horizon 2", "horizon 3"):
        assert results["cache"][horizon]["largest difference of the forecasts"] < 1e-4
    for part in (results["lewm"], results["lewm"]["successor"], results["default"]["first"], results["environments"]):
        assert part["ratio"]["low"] <= part["ratio"]["median"] <= part["ratio"]["high"]
    assert found["about"]["threads"] == 1 and found["about"]["setting"]["candidates"] == 32
    assert "identical elites" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["plan", "--size=huge"], "tiny, published"),
        (["plan", "--candidates=3"], "at least 4 candidates"),
        (["plan", "--repeats=1"], "2 repetitions"),
        (["plan", "--parts=[]"], "at least one"),
        (["plan", "--shape=[48,2,5]"], "multiple of the heads"),
        (["plan", "--parts=[default]", "--size=tiny", "--world=missing.ckpt"], "missing.ckpt"),
        (["anytime", "--world=missing.ckpt"], "missing.ckpt"),
        (["anytime", "--world=missing.ckpt", "--candidates=[16,8]"], "rising numbers"),
        (["anytime", "--world=missing.ckpt", "--protocol=pusht/swm25-50"], "two_rooms/v1"),
        (["anytime", "--world=missing.ckpt", "--protocol=chess"], "chess"),
    ],
)
def test_wrong_input_is_one_line(given, told, capsys):
    assert main(given) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.parametrize("name", anytime.KINDS)
@pytest.mark.parametrize("candidates", [anytime.FEWEST, 64])
def test_every_planner_has_every_size(name, candidates):
    if name == "nevergrad":
        pytest.importorskip("nevergrad")
    planner = anytime.planner(name, candidates)
    size = planner.simulations if name == "tree" else planner.candidates
    assert size == max(2, candidates // (anytime.BACKWARD if name in anytime.DESCENDS else 1))


def test_success_is_drawn_against_what_was_imagined(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(anytime, "load", lambda path: default_world(None))
    out = tmp_path / "anytime.json"
    few = ("--planners=[random,gradient,collocation,tree]", "--candidates=[4,8]", "--pairs=2", f"--out={out}")
    assert main(["anytime", "--world=drawn.ckpt", *few]) == 0
    results = json.loads(out.read_text())["results"]
    steps = [part["candidate-steps of a decision"] for part in results["random"]]
    assert steps == [4 * 8, 8 * 8]  # one rollout of eight steps for each candidate, at every decision
    # twelve rollouts of two starts at the first decision and four at the others, twice with their gradients
    assert 2 * 2 * 4 * 8 < results["gradient"][0]["candidate-steps of a decision"] < 2 * 2 * 13 * 8
    # forecasts of single steps are counted too: two starts, 24 and then 8 iterations, twice with their gradients
    assert results["collocation"][0]["candidate-steps of a decision"] > 2 * 2 * 8 * 8
    # every simulation asks for eight completions and the beginning of a plan; a tree of as many rollouts is no cheaper
    assert results["tree"][1]["candidate-steps of a decision"] > 8 * 8 * 8
    drawing = ElementTree.fromstring(out.with_suffix(".svg").read_text())
    assert len([mark for mark in drawing.iter() if mark.tag.endswith("circle")]) == 8
    assert re.search(r"random +8 +64 ", capsys.readouterr().out)
