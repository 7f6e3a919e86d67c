"""A policy probe is fitted on a linear system, read back, and acts in it under a protocol."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from jepa.errors import InputError
from jepa.evaluation import PROTOCOLS, EvaluationProtocol, Report
from jepa.schema import EvalSpec, Outcome, Policy, Sample, Specs
from probes.acting import ProbePolicy, act
from probes.linear import LinearProbe
from probes.policy import BehaviourCloning, GoalCloning, InverseDynamicsProbe
from probes.task import probe

TOY = EvaluationProtocol("toy/v1", "toy", pairs=12, budget=40)
FIT = {"epochs": 40, "batch": 64, "lr": [1e-2], "reach": 3, "accelerator": "cpu"}


class Toy:
    """The system of the episodes as a task: a point moves by the action, and is at its goal within 0.5."""

    def __init__(self, specs: Specs, num: int) -> None:
        self.specs, self.num = replace(specs, evaluation=EvalSpec("toy")), num

    def reset(self, seed=None, state=None, goal=None, mask=None):
        rng = [torch.Generator().manual_seed(seed + i) for i in range(self.num)]
        self.state, self.goal = (torch.stack([torch.rand(2, generator=g) * 8 - 4 for g in rng]) for _ in range(2))
        return self.look()

    def look(self) -> Sample:
        return replace(self.see(self.state), goal=self.see(self.goal))

    def see(self, position: torch.Tensor) -> Sample:
        video = torch.zeros(self.num, 1, 3, 2, 2, dtype=torch.uint8)
        video[:, 0, 0, 0] = (position * 8 + 128).clamp(0, 255).round().to(torch.uint8)
        state = torch.cat([position, (position[:, :1] > 0).float()], dim=1)
        return Sample(video=video, state=state[:, None], proprio=position.sum(1)[:, None, None])

    def success(self, state, goal):
        return (state[:, :2] - goal[:, :2]).norm(dim=1) < 0.5

    def idle(self, sample):
        return torch.zeros(self.num, 2)

    def step(self, action):
        self.state = self.state + action
        seen = self.look()
        reached = self.success(seen.state[:, 0], seen.goal.state[:, 0])
        return Outcome(seen, reached.float(), torch.zeros(self.num, dtype=torch.bool), reached)

    def close(self):
        pass


@pytest.fixture
def toy(monkeypatch, episodes):
    monkeypatch.setitem(PROTOCOLS, "toy/v1", TOY)
    monkeypatch.setitem(PROTOCOLS, "toy/v2", replace(TOY, name="toy/v2"))
    monkeypatch.setattr("jepa.tasks.judging.make", lambda env, num, size, **options: Toy(episodes.specs, num))


@pytest.fixture
def fitted(cache_path, tmp_path):
    def fit(kind, **options):
        folder = tmp_path / type(kind).__name__
        probe(cache_path, kind, "action", folder, **FIT | options)
        return folder

    return fit


@pytest.mark.parametrize("kind", [GoalCloning(64), InverseDynamicsProbe(64)], ids=lambda kind: type(kind).__name__)
def test_a_policy_that_knows_the_goal_reaches_it(world, toy, fitted, tmp_path, kind):
    report = act(world, fitted(kind), "toy/v1", tmp_path / "out", num=5)
    assert report.rate > 0.8 > 0.6 > report.floors["random"].rate and report.floors["idle"].rate <= 0.1
    assert Report.load(tmp_path / "out" / "report.json") == report
    assert (tmp_path / "out" / "trajectories.npz").is_file()
    assert report.policy == type(kind).__name__ and report.settings["execute"] == 2
    assert report.alone.decisions == 20 and report.settings["init_args"]["hidden"] == 64


def test_a_policy_without_goals_is_worse_on_the_same_pairs(world, toy, fitted, tmp_path):
    knows = act(world, fitted(InverseDynamicsProbe(64)), "toy/v1", tmp_path / "a", floors=False, decisions=0)
    blind = act(world, fitted(BehaviourCloning(64)), "toy/v1", tmp_path / "b", floors=False, decisions=0,
                against=tmp_path / "a" / "report.json", num=4)  # fmt: skip
    assert blind.pairs_digest == knows.pairs_digest and blind.comparison.difference < -0.3
    told = json.loads((tmp_path / "b" / "report.json").read_text())
    assert told["comparison"]["second"] == "InverseDynamicsProbe" and told["rate"] == blind.rate


def test_what_cannot_be_judged_is_refused_in_one_line(world, toy, fitted, cache_path, episodes, tmp_path):
    folder, out = fitted(GoalCloning(8), epochs=1), tmp_path / "out"
    foreign = type(world)(episodes.specs, seed=1)
    with pytest.raises(InputError, match="fitted on features of other weights .*fit again"):
        act(foreign, folder, "toy/v1", out)
    with pytest.raises(InputError, match="unknown protocol 'toy/v3'"):
        act(world, folder, "toy/v3", out)
    with pytest.raises(InputError, match="scores plans, which GoalCloning does not make: use it with jepa plan"):
        act(world, folder, "recorded/action-error-v1", out)
    with pytest.raises(InputError, match="draws its own starts and goals"):
        act(world, folder, "toy/v1", out, episodes=tmp_path / "some.h5")
    with pytest.raises(InputError, match="execute=3: expected 1 to 2"):
        act(world, folder, "toy/v1", out, execute=3)
    with pytest.raises(InputError, match="no probe at"):
        act(world, tmp_path / "nowhere", "toy/v1", out)
    probe(cache_path, LinearProbe(), "action", tmp_path / "linear")
    with pytest.raises(InputError, match="LinearProbe of action, which is no policy"):
        act(world, tmp_path / "linear", "toy/v1", out)
    told = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(told | {"seeds": []}))
    with pytest.raises(InputError, match="does not say which features"):
        act(world, folder, "toy/v1", out)
    (folder / "report.json").write_text(json.dumps(told))
    world.specs = replace(world.specs, evaluation=EvalSpec("another"))
    with pytest.raises(InputError, match="the world and the environment disagree"):
        act(world, folder, "toy/v1", out)
    assert not out.exists()


def test_force_shows_the_mismatch_and_goes_on(world, toy, fitted, tmp_path, caplog):
    folder, quick = fitted(GoalCloning(8), epochs=1), {"pairs": 2, "floors": False, "decisions": 0}
    usual = act(world, folder, "toy/v1", tmp_path / "usual", **quick)
    world.specs = replace(world.specs, evaluation=EvalSpec("another"))
    caplog.clear()
    forced = act(world, folder, "toy/v1", tmp_path / "forced", force=True, **quick)
    assert forced.steps == usual.steps and "evaluation.env: another != toy" in caplog.text


def test_reports_of_other_pairs_are_refused(world, toy, fitted, tmp_path):
    folder, quick = fitted(GoalCloning(8), epochs=1), {"floors": False, "decisions": 0}
    act(world, folder, "toy/v1", tmp_path / "a", pairs=3, **quick)
    with pytest.raises(InputError, match="cannot be compared: number of pairs 4 is not 3"):
        act(world, folder, "toy/v1", tmp_path / "b", pairs=4, against=tmp_path / "a" / "report.json", **quick)
    with pytest.raises(InputError, match="cannot be compared: protocol toy/v2 is not toy/v1"):
        act(world, folder, "toy/v2", tmp_path / "b", pairs=3, against=tmp_path / "a" / "report.json", **quick)


class FixedBlock(GoalCloning):
    """Answers the mean latents' first numbers as a block of two 2-D actions."""

    def forward(self, z):
        return z[:, 0].mean(1)


def sample(world, values):
    video = torch.tensor(values, dtype=torch.uint8)[:, None, None, None, None].expand(-1, 1, 3, 2, 2)
    return Sample(video=video, state=torch.zeros(len(values), 1, 3), goal=Sample(video=video))


def policy_of(world, **options):
    cloned = FixedBlock()
    cloned.build(torch.zeros(4, 2, 2, 4), torch.zeros(4, 4))
    return ProbePolicy(world, cloned, **options)


def expected(world, seen):
    return world.encode(Sample(video=seen.video))[:, 0].mean(1).detach().clamp(-1, 1).unflatten(1, (2, 2))


def test_a_block_is_acted_out_before_the_next_is_asked_for(world):
    policy = policy_of(world)
    assert isinstance(policy, Policy)
    first, other = sample(world, [100, 129]), sample(world, [150, 131])
    assert torch.allclose(policy.act(first), expected(world, first)[:, 0])
    assert torch.allclose(policy.act(other), expected(world, first)[:, 1])
    assert torch.allclose(policy.act(other), expected(world, other)[:, 0])
    assert len(policy.seconds["total"]) == 2  # decisions, not calls


def test_a_block_may_be_cut_short(world):
    policy = policy_of(world, execute=1)
    first, other = sample(world, [100, 129]), sample(world, [150, 131])
    assert torch.allclose(policy.act(first), expected(world, first)[:, 0])
    assert torch.allclose(policy.act(other), expected(world, other)[:, 0])


def test_only_environments_that_were_reset_and_are_active_are_encoded(world):
    policy, first, other = policy_of(world), sample(world, [100, 129]), sample(world, [150, 131])
    policy.act(first)
    policy.reset(torch.tensor([True, False]))
    world.seen.clear()
    action = policy.act(other)
    assert world.seen == [1, 1]  # one present and one goal, for the environment that was reset
    assert torch.allclose(action[0], expected(world, other)[0, 0])
    assert torch.allclose(action[1], expected(world, first)[1, 1])
    world.seen.clear()
    action = policy.act(other, active=torch.tensor([True, False]))
    assert world.seen == [] and torch.equal(action[1], torch.zeros(2))


def test_a_probe_of_another_width_and_a_sample_without_goal_are_refused(world):
    cloned = GoalCloning()
    cloned.build(torch.zeros(4, 2, 2, 4), torch.zeros(4, 3))
    with pytest.raises(InputError, match="answers 3 numbers, the world's actions have 4"):
        ProbePolicy(world, cloned)
    with pytest.raises(InputError, match="no goal: expected both"):
        policy_of(world).act(replace(sample(world, [100]), goal=None))
