"""Evaluation on a point that moves in the plane, with policies whose success is known."""

import json

import numpy as np
import pytest
import torch

from jepa.errors import InputError
from jepa.evaluation import (
    EvaluationProtocol,
    IdlePolicy,
    RandomPolicy,
    Report,
    Trajectories,
    compare,
    evaluate,
    latency,
    table,
)
from jepa.planning import CEM, ICEM, MPC, GoalLatent
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Outcome, Sample, Specs, Task

STEP, REACH = 0.1, 0.08
SPECS = Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (1.0,) * 2), ObservationSpec(4, 4), EvalSpec("point"))


def picture(state):
    """[B,2] in [0,1] -> [B,1,3,4,4]: the coordinates as two bytes each, spread over four pixels of one channel."""
    code = (state.clamp(0, 1) * 65535).long()
    video = torch.zeros(len(state), 1, 3, 4, 4, dtype=torch.uint8)
    video[:, 0, 0, 0, :4] = torch.stack([code[:, 0] // 256, code[:, 0] % 256, code[:, 1] // 256, code[:, 1] % 256], 1)
    return video


class Points:
    """A point in the unit square moves by a tenth of the action; start left, goal right, unless they are given."""

    specs = SPECS

    def __init__(self, num, fatal=False):
        self.num, self.fatal, self.resets, self.steps = num, fatal, [], 0

    def reset(self, seed=None, state=None, goal=None, mask=None):
        draws = [torch.rand(4, generator=torch.Generator().manual_seed(seed + i)) for i in range(self.num)]
        drawn = torch.stack(draws) * torch.tensor([0.3, 1, 0.3, 1]) + torch.tensor([0, 0, 0.7, 0])
        self.state = drawn[:, :2] if state is None else state.clone()
        self.goal = drawn[:, 2:] if goal is None else goal.clone()
        self.resets.append(seed)
        return self.sample()

    def sample(self):
        goal = Sample(video=picture(self.goal), state=self.goal[:, None])
        return Sample(video=picture(self.state), state=self.state[:, None].clone(), goal=goal)

    def success(self, state, goal):
        return (state - goal).norm(dim=1) < REACH

    def step(self, action):
        assert action.shape == (self.num, 2) and (action.abs() <= 1).all()
        self.steps += 1
        self.state = (self.state + STEP * action).clamp(0, 1)
        over = torch.full((self.num,), self.fatal)
        return Outcome(self.sample(), torch.zeros(self.num), over, self.success(self.state, self.goal))

    def idle(self, sample):
        return torch.zeros(len(sample.video), 2)

    def close(self):
        pass


class TrueWorld:
    """Reads the position from the pixels and adds the actions up: a perfect model."""

    def __init__(self, block=1):
        self.specs = Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.1, 0.0), (0.5, 0.6), block), SPECS.observation)

    def encode(self, sample):
        code = sample.video[:, :, 0, 0].float()
        position = torch.stack([code[..., 0] * 256 + code[..., 1], code[..., 2] * 256 + code[..., 3]], -1) / 65535
        return position.unsqueeze(2)

    def rollout(self, z, action, past=None):
        moves = STEP * action.unflatten(-1, (-1, 2)).sum(-2).cumsum(2)
        return (z[:, None, -1:] + moves.unsqueeze(3)).clamp(0, 1)


def protocol(**changes):
    return EvaluationProtocol(**{"name": "point/v1", "env": "point", "pairs": 20, "budget": 20, "seed": 5} | changes)


class Straight:
    """Walks to the goal; it may read the state, since it is a script. Counts what it was told."""

    def __init__(self):
        self.resets, self.active = 0, []

    def act(self, sample, active=None):
        self.active.append(int(active.sum()))
        way = (sample.goal.state - sample.state)[:, 0] / STEP
        return way / way.norm(dim=1, keepdim=True).clamp_min(1)

    def reset(self, done):
        self.resets += 1


def quiet(policy, task, rules, *args, **options):
    return evaluate(policy, task, rules, *args, **{"progress": False, "floors": False, "decisions": 0} | options)


def test_the_toy_is_a_task():
    assert isinstance(Points(1), Task)


@pytest.mark.parametrize("planner", [CEM(), ICEM()], ids=["cem", "icem"])
@pytest.mark.parametrize("block,execute", [(1, 1), (2, 2)])
def test_planning_in_a_perfect_world_solves_everything_and_chance_does_not(planner, block, execute):
    cost = GoalLatent(reduce="sum", last_weight=3.0)
    policy = MPC(TrueWorld(block), planner, cost, horizon=8 // block, execute=execute)
    report = evaluate(policy, Points(10), protocol(), progress=False, decisions=3)
    assert report.rate == 1.0 and report.solved_at_start == 0.0
    assert report.floors["random"].rate < 0.3 and report.floors["idle"].rate == 0.0
    assert report.floors["random"].pairs_digest == report.pairs_digest
    assert report.alone.decisions == 3 and report.alone.first_ms > 0 and report.latency.p50_ms > 0
    assert report.interval[0] == pytest.approx(0.8389, abs=1e-3)


def test_outcomes_do_not_depend_on_how_many_environments_run_at_once():
    policy = MPC(TrueWorld(), CEM(candidates=32, elites=4), GoalLatent(), horizon=5)
    reports = [quiet(policy, Points(num), protocol()) for num in (1, 7, 20, 64)]
    assert len({tuple(report.steps) for report in reports}) == 1
    assert len({report.pairs_digest for report in reports}) == 1


def test_steps_to_success_follow_from_the_distance():
    task, policy = Points(8), Straight()
    report = quiet(policy, task, protocol(), name="straight")
    expected = []
    for pair in range(20):
        sample = Points(1).reset(seed=5 + pair)
        distance = (sample.goal.state - sample.state).norm().item()
        expected.append(int(np.floor((distance - REACH) / STEP)) + 1)
    assert report.steps == expected and report.policy == "straight"
    assert task.resets == [5, 13, 21] and policy.resets == 3
    curve = report.success_at
    assert len(curve) == 21 and curve[0] == 0.0 and curve[-1] == 1.0
    assert curve[min(expected)] == expected.count(min(expected)) / 20
    assert report.steps_to_success == pytest.approx(np.mean(expected))


def test_policies_are_told_which_environments_still_matter_and_batches_end_early():
    task, policy = Points(8), Straight()
    report = quiet(policy, task, protocol())
    assert policy.active[0] == 8
    per_batch = [report.steps[i : i + 8] for i in (0, 8, 16)]
    assert task.steps == sum(max(steps) for steps in per_batch)
    assert sum(policy.active) == sum(report.steps), "every environment costs exactly its steps, padding nothing"


def test_success_counts_at_any_step_and_stays():
    """The point passes over the goal and leaves it again: judged at the end, the pair would be lost."""

    class Passing(Straight):
        def act(self, sample, active=None):
            return torch.tensor([[1.0, 0.0]]).repeat(len(sample.video), 1)

    start, goal = torch.tensor([[0.0, 0.5], [0.0, 0.5]]), torch.tensor([[0.5, 0.5], [0.5, 0.9]])
    rules = protocol(goals="episodes", offset=1, pairs=2, budget=9)
    assert quiet(Passing(), Points(2), rules, start, goal).steps == [5, -1]


def test_the_budget_is_environment_steps():
    rules = protocol(budget=3)
    task = Points(20)
    assert quiet(Straight(), task, rules).successes == 0 and task.steps == 3


def test_pairs_that_are_solved_at_the_start_are_counted_apart():
    start = torch.tensor([[0.5, 0.5], [0.1, 0.1], [0.2, 0.2]])
    goal = torch.tensor([[0.55, 0.5], [0.9, 0.9], [0.2, 0.2]])
    rules = protocol(goals="episodes", offset=1, pairs=3)
    report = evaluate(RandomPolicy(SPECS.action), Points(3), rules, start, goal, progress=False)
    assert report.steps[0] == 0 and report.steps[2] == 0
    assert report.solved_at_start == pytest.approx(2 / 3) and report.success_at[0] == pytest.approx(2 / 3)
    assert report.floors["idle"].steps == [0, -1, 0]


def test_an_environment_that_ends_without_success_has_failed():
    task = Points(20, fatal=True)
    assert quiet(Straight(), task, protocol()).successes == 0 and task.steps == 1


def test_idle_asks_the_task_what_doing_nothing_is():
    class Holding(Points):
        def idle(self, sample):
            return sample.state[:, 0]

    sample = Holding(2).reset(seed=0)
    assert torch.equal(IdlePolicy(Holding(2)).act(sample), sample.state[:, 0])


def test_random_actions_fill_the_bounds_or_follow_the_statistics():
    space = ActionSpec((-1.0, 2.0, -float("inf")), (3.0, 4.0, float("inf")), (0.0, 0.0, 5.0), (1.0, 1.0, 2.0))
    policy = RandomPolicy(space, seed=1)
    many = Sample(video=torch.zeros(20000, 1, 1, 1, 1, dtype=torch.uint8))
    action = policy.act(many)
    assert torch.allclose(action.mean(0), torch.tensor([1.0, 3.0, 5.0]), atol=0.05)
    assert torch.allclose(action.std(0), torch.tensor([4 / 12**0.5, 2 / 12**0.5, 2.0]), atol=0.05)
    assert action[:, 0].min() >= -1 and action[:, 0].max() <= 3
    policy.reset(torch.ones(20000, dtype=torch.bool))
    assert torch.equal(policy.act(many), action)


def test_latency_of_one_environment_counts_decisions_not_calls():
    policy = MPC(TrueWorld(), CEM(candidates=8, elites=2), GoalLatent(), horizon=5, execute=5)
    measured = latency(policy, Points(6).reset(seed=0), decisions=4)
    assert measured.decisions == 4 and len(policy.seconds["total"]) == 5
    assert latency(RandomPolicy(SPECS.action), Points(6).reset(seed=0), decisions=4).decisions == 4


def test_trajectories_hold_what_happened(tmp_path):
    seen = Trajectories()
    report = quiet(Straight(), Points(8), protocol(), trajectories=seen)
    seen.save(tmp_path / "deep" / "trajectories.npz")
    with np.load(tmp_path / "deep" / "trajectories.npz", allow_pickle=False) as file:
        data = dict(file)
    assert data["state"].shape == (20, 21, 2) and data["action"].shape == (20, 20, 2)
    assert data["steps"].tolist() == report.steps and data["frame"].shape == (20, 3, 4, 4)
    for pair, steps in enumerate(report.steps):
        assert np.isfinite(data["state"][pair, : steps + 1]).all() and np.isnan(data["state"][pair, steps + 1 :]).all()
        assert np.linalg.norm(data["state"][pair, steps] - data["goal"][pair]) < REACH
        moved = data["state"][pair, 0] + STEP * data["action"][pair, :steps].sum(0)
        assert moved == pytest.approx(data["state"][pair, steps], abs=1e-5)


def test_states_must_fit_the_protocol():
    state = torch.zeros(20, 2)
    with pytest.raises(InputError, match="held-out episodes"):
        quiet(Straight(), Points(4), protocol(goals="episodes", offset=3))
    with pytest.raises(InputError, match="was given 20 and 19"):
        quiet(Straight(), Points(4), protocol(goals="episodes", offset=3), state, state[:19])
    with pytest.raises(InputError, match="leave them out"):
        quiet(Straight(), Points(4), protocol(), state, state)


def test_a_report_is_whole_json_and_comes_back(tmp_path):
    report = evaluate(Straight(), Points(20), protocol(), progress=False)
    report.comparison = compare(report, report.floors["random"])
    path = tmp_path / "new" / "report.json"
    report.save(path)
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["rate"] == 1.0 and data["successes"] == 20 and len(data["success_at"]) == 21
    assert data["floors"]["random"]["pairs"] == 20 and data["versions"]["torch"] == torch.__version__
    assert Report.load(path) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"rate": 1.0}', "{"])
def test_a_broken_report_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Report.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        Report.load(tmp_path / "missing.json")


def test_a_failed_write_leaves_nothing_and_spares_the_old_file(tmp_path):
    from jepa.files import write_atomically

    path = tmp_path / "report.json"
    path.write_text("old")

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_atomically(path, full)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["file/report.json", "file/deep/report.json", "folder"])
def test_a_place_where_no_file_can_be_is_told_in_one_line(tmp_path, name):
    from jepa.files import write_atomically

    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*; free space or name another folder") as caught:
        write_atomically(tmp_path / name, lambda file: file.write(b"new"))
    assert "\n" not in str(caught.value) and (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_table_has_one_row_per_report():
    report = evaluate(Straight(), Points(20), protocol(), progress=False, name="straight")
    lines = table([report, report.floors["idle"]]).splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[2].startswith("| straight | point/v1 | 20 | 100.0 [83.9, 100.0]")
    assert str(report) == table([report])


def test_a_comparison_is_paired():
    steps = {"a": [3] * 9 + [-1], "b": [-1] * 8 + [4, 4]}
    a, b = (Report(name, protocol().to_dict(), values, "same") for name, values in steps.items())
    both = compare(a, b)
    assert (both.only_first, both.only_second, both.pairs) == (8, 1, 10)
    assert both.difference == pytest.approx(0.7) and both.p_value == pytest.approx(2 * 10 / 512)
    assert both.interval[0] < 0.7 < both.interval[1]
    assert compare(a, a).p_value == 1.0 and "p = 0.0391" in str(both)


@pytest.mark.parametrize("changes", [{"pairs": 10}, {"seed": 6}, {"name": "point/v2"}, {"budget": 19}])
def test_reports_of_other_pairs_or_protocols_are_not_compared(changes):
    mine, other = (quiet(Straight(), Points(10), protocol(**c)) for c in ({}, changes))
    with pytest.raises(InputError, match="cannot be compared") as caught:
        compare(mine, other)
    assert "\n" not in str(caught.value)


BEFORE, AFTER = torch.tensor([[0.0, 0.5], [0.3, 0.5], [0.48, 0.5]]), torch.tensor([[0.5, 0.5]] * 3)
OF_EPISODES = {"goals": "episodes", "offset": 1, "pairs": 3, "budget": 8}


class Eastward(Straight):
    """Passes over the goal: what it does not know is that it is there."""

    def act(self, sample, active=None):
        super().act(sample, active)
        return torch.tensor([[1.0, 0.0]]).repeat(len(sample.video), 1)


def test_without_privileged_stopping_a_policy_must_stay_and_is_told_nothing():
    rules = protocol(**OF_EPISODES, judged="end", stops=False)
    passing, task = Eastward(), Points(3)
    report = quiet(passing, task, rules, BEFORE, AFTER)
    assert report.steps == [-1, -1, -1] and report.reached == [5, 2, 0] and task.steps == 8
    assert passing.active == [3] * 8, "nobody says that a pair is solved"
    assert report.rate == 0.0 and report.reached_rate == 1.0 and report.solved_at_start == pytest.approx(1 / 3)
    staying = quiet(Straight(), Points(3), rules, BEFORE, AFTER)
    assert staying.steps == [8, 8, 8] and staying.success_at[7] == 0.0 and staying.success_at[8] == 1.0
    stopped = quiet(Eastward(), Points(3), protocol(**OF_EPISODES), BEFORE, AFTER)
    assert stopped.steps == stopped.reached == [5, 2, 0]


def test_in_an_open_loop_the_policy_sees_the_start_and_nothing_after_it():
    class Watching(Straight):
        def act(self, sample, active=None):
            seen.append(sample.state[:, 0].clone())
            return super().act(sample, active)

    seen = []
    rules = protocol(**OF_EPISODES, judged="end", stops=False, open_loop=True)
    quiet(Watching(), Points(3), rules, BEFORE, AFTER)
    assert len(seen) == 8 and all(torch.equal(state, BEFORE) for state in seen)
    world = TrueWorld(2)
    cost = GoalLatent(reduce="sum", last_weight=3.0)
    planned = quiet(MPC(world, CEM(), cost, horizon=4, execute=4), Points(3), rules, BEFORE, AFTER)
    assert planned.steps == [8, 8, 8], "one plan of four blocks of two steps reaches the goal and stays"
    assert planned.latency.decisions == 1


def test_an_episode_that_ends_is_judged_where_it_ended():
    rules = protocol(**OF_EPISODES, judged="end", stops=False)
    start = torch.tensor([[0.4, 0.5], [0.49, 0.5], [0.2, 0.5]])
    report = quiet(Eastward(), Points(3, fatal=True), rules, start, AFTER)
    assert report.steps == [8, -1, -1] and report.reached == [1, 0, -1]


def test_the_stages_of_decisions_and_success_at_k_are_printed_and_kept(tmp_path):
    policy = MPC(TrueWorld(), CEM(), GoalLatent(reduce="sum", last_weight=3.0), horizon=8)
    report = evaluate(policy, Points(10), protocol(), progress=False, floors=False, decisions=3)
    stages = ["encode", "rollout", "cost", "search", "host"]
    assert list(report.alone.stages_ms) == list(report.latency.stages_ms) == stages
    assert 0 < sum(report.alone.stages_ms.values()) < 3 * report.alone.p95_ms
    assert "ms of the stages of a decision: encode " in str(report)
    curve = report.success_at
    assert f"@5 {100 * curve[5]:.1f}, @10 {100 * curve[10]:.1f}, @20 {100 * curve[20]:.1f}" in str(report)
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


@pytest.mark.parametrize("spoil", [{"steps": None}, {"latency": {"p51_ms": 1}}, {"steps": []}])
def test_half_a_report_is_refused_in_one_line(tmp_path, spoil):
    quiet(Straight(), Points(4), protocol(pairs=2)).save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text()) | spoil
    data.pop("reached")
    if data["steps"] is None:
        del data["steps"]
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="write it again") as caught:
        Report.load(tmp_path / "report.json")
    assert "\n" not in str(caught.value)
