"""``jepa plan`` on recorded episodes: a world that is right finds what was done, one that is blind does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa.cli import main
from jepa.data.clips import split
from jepa.errors import InputError
from jepa.evaluation import ActionReport, Report
from jepa.planning import CEM, MPC, GoalLatent
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Sample, Specs
from jepa.tasks.plan import plan

COUNT, LENGTH = 30, 14
NAME = "recorded/action-error-v1"


class Dots:
    """Stands in for the HDF5 store: flat frames whose red and green move by the action; proprio is the place."""

    specs = Specs(
        ActionSpec((-9.0,) * 2, (9.0,) * 2, (0.0,) * 2, (4.0,) * 2),
        ObservationSpec(8, 8, proprio_mean=(0.0,) * 2, proprio_std=(1.0,) * 2),
    )

    def __init__(self, path="", side=8):
        random = torch.Generator().manual_seed(0)
        # what is done drifts, so that no floor is the best plan by chance
        self.action = (4 * torch.randn(COUNT, LENGTH, 2, generator=random) + 1).clamp(-9, 9).round()
        self.place = 120 + torch.cat([torch.zeros(COUNT, 1, 2), self.action[:, :-1].cumsum(1)], 1)
        self.side = side

    def __len__(self):
        return COUNT

    def length(self, episode):
        return LENGTH

    def read(self, episode, frames, columns=None):
        frames = torch.as_tensor(np.asarray(frames))
        assert frames.min() >= 0 and frames.max() < LENGTH and "state" not in columns
        video = torch.zeros(len(frames), 3, self.side, self.side, dtype=torch.uint8)
        video[:, :2] = self.place[episode, frames].to(torch.uint8)[:, :, None, None]
        whole = Sample(video=video, action=self.action[episode, frames], proprio=self.place[episode, frames])
        return Sample(**{name: getattr(whole, name) for name in columns})


class World:
    """Sees the place and adds the actions, if it looks at them; checks that pixels, poses and past belong together."""

    def __init__(self, blind=False, block=1, history=1):
        space = replace(Dots.specs.action, block=block)
        self.specs = replace(Dots.specs, action=space, evaluation=EvalSpec(history=history))
        self.blind, self.contexts = blind, set()

    def encode(self, sample):
        assert sample.proprio is None or torch.equal(sample.proprio.round(), sample.video[:, :, :2, 0, 0].float())
        return sample.video[:, :, :2, 0, 0].float().unsqueeze(2) / 10

    def _moves(self, action):
        return action.unflatten(-1, (-1, 2)).sum(-2) / 10

    def rollout(self, z, action, past=None, proprio=None):
        assert torch.equal(proprio / 10, z[:, :, 0]) and (past is None) == (z.shape[1] == 1)
        if past is not None:
            assert torch.allclose(z[:, :-1, 0] + self._moves(past), z[:, 1:, 0], atol=1e-4)
        self.contexts.add(z.shape[1])
        moves = (0 if self.blind else 1) * self._moves(action).cumsum(2)
        return (z[:, -1:].unsqueeze(1) + moves.unsqueeze(3)).reshape(*action.shape[:3], 1, 2)


@pytest.fixture(autouse=True)
def stores(monkeypatch):
    monkeypatch.setattr("jepa.tasks.recorded.Hdf5Episodes", Dots)


def run(out, **options):
    usual = {"planner": CEM(iterations=6), "cost": GoalLatent(), "protocol": NAME, "horizon": 3, "pairs": 40}
    usual |= {"episodes": out / "some.h5", "decisions": 2, "parts": (0.5, 0.1, 0.4), "world": World()}
    return plan(**usual | options, out=out)


def test_a_world_that_is_right_finds_the_sum_of_what_was_done_and_a_blind_one_nothing(tmp_path):
    right = run(tmp_path / "right", name="right")
    blind = run(tmp_path / "blind", name="blind", world=World(blind=True), against=tmp_path / "right" / "report.json")
    mine, still = right.estimates(), right.estimates("mean_action")
    # many orders of moves lead to one goal: only their sum is known
    assert mine["sum"].value < 0.15 * still["sum"].value and mine["sum_cosine"].value > 0.95
    assert max(one.value for one in mine["sum_raw"]) < 1.5
    assert blind.estimates()["sum"].low > 2 * mine["sum"].high
    assert blind.comparison.differences["sum"].low > 0 and blind.comparison.second == "right"
    assert set(right.floors) == {"mean_action", "random", "repeat_last"} and right.pairs_digest == blind.pairs_digest
    assert ActionReport.load(tmp_path / "right" / "report.json") == right
    assert right.alone.decisions == 2 and right.alone.first_ms > 0 and right.alone.stages_ms["encode"] > 0
    assert "| right |" in str(right) and "| mean action, sum |" in str(right)


def test_only_test_episodes_are_drawn_and_the_last_action_is_the_one_before_the_start(tmp_path):
    report, store = run(tmp_path), Dots()
    _, _, test = split(store, (0.5, 0.1, 0.4))
    assert set(report.episode) <= set(test) and min(report.start) >= 1 and max(report.start) == LENGTH - 1 - 3
    for row, (episode, start) in enumerate(zip(report.episode, report.start)):
        gap = (store.action[episode, start - 1] - store.action[episode, start]).abs().tolist()
        assert report.floors["repeat_last"]["first_raw"][row] == gap


def test_how_many_plans_are_made_at_once_changes_nothing(tmp_path):
    few, many = (run(tmp_path, num=num, floors=False, decisions=0) for num in (7, 50))
    assert few.errors["first"] == pytest.approx(many.errors["first"], abs=1e-5) and not few.floors
    assert few.latency.decisions == 6 and many.latency.decisions == 1 and few.alone.decisions == 0


def test_blocks_and_as_much_history_as_the_episode_has(tmp_path):
    world = World(block=2, history=3)
    report = run(tmp_path, world=world, pairs=30)
    assert world.contexts == {2, 3}  # the earliest start is a block behind the first frame
    assert report.frame_skip == 2 and len(report.errors["first_raw"][0]) == 2
    assert report.estimates()["sum"].value < 0.2 * report.estimates("mean_action")["sum"].value


def test_a_plan_of_one_step_is_scored_by_its_first_action_only(tmp_path):
    report = run(tmp_path, horizon=1)
    assert set(report.errors) == {"first", "first_cosine", "first_raw"} and "sum" in report.floors["random"]
    assert report.row()["error, sum"] == "-"


def test_frames_of_another_size_are_resized_as_in_training(tmp_path, monkeypatch):
    small = run(tmp_path, decisions=0)
    monkeypatch.setattr("jepa.tasks.recorded.Hdf5Episodes", lambda path: Dots(path, side=16))
    assert run(tmp_path, decisions=0).errors == small.errors


def test_what_cannot_be_scored_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    Report("other", {"name": "x", "budget": 1}, [1], "digest").save(tmp_path / "report.json")
    for wrong, word in (
        ({"episodes": None}, "name a dataset with --episodes"),
        ({"pairs": 5000}, "wants 5000"),
        ({"against": tmp_path / "report.json"}, "success in an environment"),
        ({"history": 2}, "evaluation.history: 1 != 2"),
    ):
        with pytest.raises(InputError, match=word):
            run(out, **wrong)
    other = World()
    other.specs = replace(other.specs, action=ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (1.0,) * 2))
    with pytest.raises(InputError, match="action.high: .1.0, 1.0. != .9.0, 9.0."):
        run(out, world=other)
    assert not out.exists()
    assert run(out, world=other, force=True, decisions=0).pairs == 40


def test_a_context_is_planned_for_alone_and_the_same_again():
    policy = MPC(World(history=2), CEM(first_iterations=1), GoalLatent(), 3)
    store = Dots()
    seen = store.read(0, [3, 4], ("video", "proprio", "action")).map(lambda part: part[None])
    goal = store.read(0, [7], ("video", "proprio")).map(lambda part: part[None])
    context = Sample(video=seen.video, proprio=seen.proprio, action=seen.action[:, :1], goal=goal)
    first, again = policy.plan(context), policy.plan(context)
    assert torch.equal(first.action, again.action) and first.action.shape == (1, 3, 2)
    with pytest.raises(InputError, match="at most 2"):
        policy.plan(replace(context, video=context.video[:, [0, 0, 1]]))
    with pytest.raises(InputError, match="no proprio"):
        policy.plan(Sample(video=seen.video, action=seen.action[:, :1], goal=goal))


def test_two_reports_are_compared_and_kinds_are_not_mixed(tmp_path, capsys):
    one, other = (run(tmp_path / name, name=name, decisions=0, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    assert main(["plan", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert str(one.compare(other)) in capsys.readouterr().out
    Report("other", {"name": "x", "budget": 1}, [1], "digest").save(tmp_path / "c" / "report.json")
    assert main(["plan", "--compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "name two reports of one protocol" in capsys.readouterr().err
