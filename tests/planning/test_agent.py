"""MPC as a policy: what it encodes and when, what it remembers, and what it never looks at."""

import logging
import time

import pytest
import torch

from jepa.errors import InputError
from jepa.planning import CEM, ICEM, MPC, GoalLatent, check_history, check_specs
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Plan, Policy, Problem, Sample, Specs

SIZE = 4


def specs(block=1, history=1, **changes):
    action = ActionSpec((-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5), block)
    return Specs(action, ObservationSpec(SIZE, SIZE), EvalSpec(**{"env": "toy", "history": history} | changes))


def frames(positions):
    """Positions [B,2] in 0..255 as flat-coloured frames [B,1,3,4,4]: red is x, green is y."""
    video = torch.zeros(len(positions), 1, 3, SIZE, SIZE, dtype=torch.uint8)
    video[:, 0, :2] = positions.to(torch.uint8)[:, :, None, None]
    return video


class World:
    """Knows the truth: the latent is the position in tens, and actions add up. Records what it was asked."""

    def __init__(self, **options):
        self.specs = specs(**options)
        self.encoded, self.rollouts = [], []

    def encode(self, sample):
        assert sample.state is None and sample.goal is None and sample.reward is None
        self.encoded.append(len(sample.video))
        return sample.video[:, :, :2, 0, 0].float().unsqueeze(2) / 10

    def rollout(self, z, action, past=None):
        self.rollouts.append((z.clone(), None if past is None else past.clone(), action.shape))
        moves = action.unflatten(-1, (-1, 2)).sum(-2).cumsum(2)
        return (z[:, -1:].unsqueeze(1) + moves.unsqueeze(3)).reshape(*action.shape[:3], 1, 2)


class Scripted:
    """A planner whose step h of environment b is the action 0.1 h everywhere; it remembers its warm starts."""

    def __init__(self):
        self.warm = []

    def plan(self, problem: Problem, warm=None) -> Plan:
        self.warm.append(warm)
        steps = torch.arange(problem.horizon).float().reshape(1, -1, 1) / 10
        action = steps.expand(problem.batch, -1, problem.space.width).clone()
        return Plan(action, problem.cost(action.unsqueeze(1))[:, 0])


class Blind(Sample):
    """A present whose privileged state raises when it is looked at."""

    @property
    def state(self):
        raise AssertionError("the policy looked at the privileged state")

    @state.setter
    def state(self, value):
        pass


def present(positions, goals, kind=Sample):
    return kind(video=frames(torch.tensor(positions)), goal=kind(video=frames(torch.tensor(goals))))


def agent(world=None, planner=None, **options):
    options = {"horizon": 4} | options
    return MPC(world or World(), planner or Scripted(), GoalLatent(), **options)


def test_it_reaches_the_goal_and_never_sees_the_state():
    policy = agent(planner=CEM(), horizon=3)
    assert isinstance(policy, Policy)
    position, goal = torch.tensor([[50.0, 200.0], [120.0, 30.0]]), [[90, 170], [100, 60]]
    policy.reset(torch.ones(2, dtype=torch.bool))
    for _ in range(12):
        action = policy.act(present(position.round().tolist(), goal, Blind))
        assert action.shape == (2, 2) and (action.abs() <= 1).all()
        position = position + 10 * action
    assert ((position - torch.tensor(goal)).abs() < 8).all()


def test_plans_are_queued_and_blocks_unfolded():
    world, planner = World(block=3), Scripted()
    policy = agent(world, planner, execute=2)
    taken = [policy.act(present([[0, 0]], [[9, 9]]))[0, 0].item() for _ in range(7)]
    assert taken == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.0])
    assert len(planner.warm) == 2 and planner.warm[0] is None
    # two steps were executed: step 2 of the old plan is step 0 of the warm start, and the last one fills the end
    assert planner.warm[1][0, :, 0].tolist() == pytest.approx([0.2, 0.3, 0.3, 0.3])


def test_frames_are_encoded_only_where_a_plan_begins_and_goals_once():
    world = World(block=3)
    policy = agent(world, execute=2)
    for _ in range(12):
        policy.act(present([[0, 0], [5, 5]], [[9, 9], [7, 7]]))
    assert world.encoded == [2, 2, 2]  # present, goal; present


def test_a_context_is_encoded_once_for_all_candidates_and_iterations():
    world = World()
    agent(world, CEM(candidates=16, elites=4)).act(present([[0, 0]], [[9, 9]]))
    assert world.encoded == [1, 1]
    assert {tuple(z.shape) for z, _, _ in world.rollouts} == {(1, 1, 1, 2)}


def test_history_holds_frames_and_actions_at_the_borders_of_blocks():
    world = World(block=2, history=3)
    policy = agent(world, execute=1)
    for t in range(7):
        policy.act(present([[10 * t, 0]], [[200, 200]]))
    contexts = [z[0, :, 0, 0].tolist() for z, _, _ in world.rollouts]
    assert contexts == [[0], [0, 2], [0, 2, 4], [2, 4, 6]]
    assert world.rollouts[0][1] is None
    assert [tuple(past.shape) for _, past, _ in world.rollouts[1:]] == [(1, 1, 4), (1, 2, 4), (1, 2, 4)]


def test_history_is_kept_at_borders_between_decisions():
    world = World(history=3)
    policy = agent(world, execute=2)
    for t in range(5):
        policy.act(present([[10 * t, 0]], [[200, 200]]))
    z, past, _ = world.rollouts[-1]
    assert z[0, :, 0, 0].tolist() == [2, 3, 4]
    assert past[0, :, 0].tolist() == pytest.approx([0.0, 0.1])  # the two steps of the plan before


def test_only_environments_that_need_a_plan_are_planned():
    world = World()
    policy = agent(world, execute=3)
    sample = present([[0, 0], [5, 5], [6, 6]], [[9, 9], [7, 7], [8, 8]])
    policy.act(sample)
    policy.reset(torch.tensor([False, True, False]))
    policy.act(sample)
    assert [len(z) for z, _, _ in world.rollouts] == [3, 1]
    assert world.encoded == [3, 3, 1, 1]
    first = policy.act(sample)
    assert first[:, 0].tolist() == pytest.approx([0.2, 0.1, 0.2])


def test_solved_environments_cost_nothing():
    world = World()
    policy = agent(world, CEM(candidates=8, elites=2))
    sample = present([[0, 0], [50, 50]], [[99, 99], [7, 7]])
    action = policy.act(sample, active=torch.tensor([False, True]))
    assert action[0].tolist() == [0, 0] and action[1].abs().sum() > 0
    assert world.encoded == [1, 1] and {len(z) for z, _, _ in world.rollouts} == {1}
    policy.act(sample, active=torch.tensor([False, False]))
    assert world.encoded == [1, 1]


def test_a_new_goal_is_encoded_and_planned_for_at_once():
    world, planner = World(), Scripted()
    policy = agent(world, planner, execute=4)
    policy.act(present([[0, 0], [5, 5]], [[9, 9], [7, 7]]))
    policy.act(present([[0, 0], [5, 5]], [[9, 9], [70, 7]]))
    assert world.encoded == [2, 2, 1, 1]
    assert planner.warm == [None, None], "the plan for another goal is no warm start"


def test_the_order_and_the_number_of_environments_change_nothing():
    positions, goals = [[0, 0], [50, 90], [200, 30]], [[99, 99], [7, 7], [120, 180]]
    for planner in (CEM(), ICEM()):
        together = agent(World(), planner).act(present(positions, goals))
        turned = agent(World(), planner).act(present(positions[::-1], goals[::-1])).flip(0)
        alone = torch.cat([agent(World(), planner).act(present([p], [g])) for p, g in zip(positions, goals)])
        assert torch.allclose(together, turned, atol=1e-5) and torch.allclose(together, alone, atol=1e-5)


def test_a_reset_of_all_starts_the_noise_anew_and_the_seed_matters():
    sample = present([[0, 0]], [[99, 99]])
    policy = agent(planner=CEM(first_iterations=1))
    first = policy.act(sample)
    assert not torch.equal(policy.act(sample), first)
    policy.reset(torch.tensor([True]))
    assert torch.equal(policy.act(sample), first)
    assert not torch.equal(agent(planner=CEM(first_iterations=1), seed=1).act(sample), first)


def test_chunks_bound_a_rollout_and_change_nothing():
    sample, world = present([[0, 0]], [[99, 99]]), World()
    chunked = agent(world, CEM(candidates=20, elites=4), chunk=7).act(sample)
    assert {shape[1] for _, _, shape in world.rollouts} == {7, 6, 1}
    assert torch.equal(chunked, agent(planner=CEM(candidates=20, elites=4)).act(sample))


def test_elites_come_back_behind_the_warm_start():
    class Spy(ICEM):
        warm = []

        def plan(self, problem, warm=None):
            self.warm.append(None if warm is None else warm.shape)
            return super().plan(problem, warm)

    policy = agent(planner=Spy(keep=3))
    for _ in range(2):
        policy.act(present([[0, 0]], [[99, 99]]))
    assert Spy.warm == [None, (1, 4, 4, 2)]


def test_seconds_are_listed_for_every_decision_and_only_there():
    policy = agent(execute=2)
    for _ in range(5):
        policy.act(present([[0, 0]], [[99, 99]]))
    stages = ("encode", "rollout", "cost", "search", "host", "total")
    assert {stage: len(times) for stage, times in policy.seconds.items()} == dict.fromkeys(stages, 3)


def test_the_stages_of_a_decision_add_up_and_each_is_told_from_the_others():
    class Slow(World):
        def encode(self, sample):
            time.sleep(0.02)  # twice: present and goal
            return super().encode(sample)

        def rollout(self, z, action, past=None):
            time.sleep(0.03)
            return super().rollout(z, action, past)

    policy = agent(Slow())
    policy.act(present([[0, 0]], [[99, 99]]))
    took = {stage: times[0] for stage, times in policy.seconds.items()}
    assert took["encode"] >= 0.04 and took["rollout"] >= 0.03
    assert sum(took[stage] for stage in took if stage != "total") == pytest.approx(took["total"], rel=1e-3)


def test_costs_that_are_all_broken_are_evidence():
    class Broken(World):
        def rollout(self, z, action, past=None):
            return super().rollout(z, action, past) * torch.nan

    with pytest.raises(AssertionError, match="finite cost"):
        agent(Broken(), CEM()).act(present([[0, 0]], [[9, 9]]))


def test_a_module_is_put_into_evaluation_mode():
    class Module(torch.nn.Module):
        specs = specs()

    world = Module().train()
    MPC(world, CEM(), GoalLatent(), 3)
    assert not world.training


@pytest.mark.parametrize("options", [{"execute": 0}, {"execute": 5}, {"history": 0}, {"chunk": 0}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(InputError):
        agent(**options)


def test_frames_of_another_size_or_without_goal_are_refused():
    with pytest.raises(InputError, match="image size"):
        sample = present([[0, 0]], [[9, 9]])
        agent().act(Sample(video=torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), goal=sample.goal))
    with pytest.raises(InputError, match="goal"):
        agent().act(Sample(video=sample.video))


def test_specs_that_disagree_are_refused_by_name():
    mine = specs(block=5)
    check_specs(mine, specs())  # the block and the statistics may differ
    check_specs(mine, specs(env=""))
    wide = Specs(ActionSpec((-2.0,) * 2, (2.0,) * 2, (0.0,) * 2, (1.0,) * 2), mine.observation, mine.evaluation)
    large = Specs(mine.action, ObservationSpec(96, SIZE), mine.evaluation)
    for other, word in ((wide, "action.low"), (large, "observation.height: 4 != 96"), (specs(env="maze"), "maze")):
        with pytest.raises(InputError, match=word) as caught:
            check_specs(mine, other)
        assert "\n" not in str(caught.value)


def test_a_forced_mismatch_is_shown_line_by_line_and_goes_on(caplog):
    mine, large = specs(), Specs(specs().action, ObservationSpec(96, SIZE), EvalSpec("maze"))
    with caplog.at_level(logging.WARNING):
        check_specs(mine, large, force=True)
        check_history(mine, 3, force=True)
    shown = [record.message for record in caplog.records]
    assert len(shown) == 3 and "evaluation.env: toy != maze" in shown[0] and "history: 1 != 3" in shown[2]


def test_more_context_than_the_world_was_trained_on_is_refused():
    check_history(specs(history=3), None)
    check_history(specs(history=3), 2)
    with pytest.raises(InputError, match="evaluation.history: 3 != 4"):
        check_history(specs(history=3), 4)
