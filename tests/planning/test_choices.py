"""Planners of discrete actions: exact against brute force, on one-hot actions and on grids of continuous ones."""

import itertools
import math

import pytest
import torch

from jepa.errors import InputError
from jepa.planning import CEM, CategoricalCEM, GoalGame, GradientPlanner, TreeSearch, shift
from jepa.planning.choices import Choices, menu_of
from jepa.planning.tree import PUCT, search
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Problem, Specs
from jepa.testing import check_planner

ONE_HOT = ActionSpec((0.0,) * 4, (1.0,) * 4, (0.25,) * 4, (0.43,) * 4, block=2, choices=4)
GRID = ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.6, 1.5), block=2)
PLANE = ActionSpec((-1.0, -2.0), (1.0, 2.0), (0.1, -0.3), (0.2, 1.5))
PLANNERS = {
    "categorical": CategoricalCEM(),
    "categorical held": CategoricalCEM(hold=2, keep=0),
    "puct": TreeSearch(first_simulations=200, simulations=10, rule="puct"),
    "gumbel": TreeSearch(first_simulations=90, simulations=10),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(space, horizon, batch=3, seed=5):
    """A cost that looks up pairs of neighbouring choices, so that no step is good by itself: (problem, optimum [B])."""
    menu, steps = menu_of(space, 2), horizon * space.block
    pair = 1 + torch.rand(batch, steps, len(menu), len(menu), generator=generator(seed))

    def score(index):
        index = index.expand(batch, -1, -1)
        rows, time = torch.arange(batch)[:, None, None], torch.arange(1, steps)
        return pair[rows, time, index[..., :-1], index[..., 1:]].sum(-1)

    problem = Problem(lambda a: score(Choices(problem, 1, 2).index(a)), space, horizon, batch, generator=generator())
    every = torch.tensor(list(itertools.product(range(len(menu)), repeat=steps)))
    return problem, score(every[None]).amin(1)


@pytest.mark.parametrize(
    "planner",
    [
        CategoricalCEM(512, 32, first_iterations=12, explore=0.1, levels=2),
        TreeSearch(first_simulations=300, rule="puct", levels=2),
        TreeSearch(first_simulations=300, levels=2),
    ],
    ids=["categorical", "puct", "gumbel"],
)
@pytest.mark.parametrize("space,horizon", [(ONE_HOT, 2), (PLANE, 4)], ids=["one-hot", "grid"])
def test_they_find_the_optimum_that_brute_force_finds(planner, space, horizon):
    problem, best = table(space, horizon)
    plan = planner.plan(problem)
    assert (plan.cost <= 1.01 * best).all(), (plan.cost / best).tolist()


def test_a_plan_that_must_lose_at_first_is_found():
    """Every move to the left costs nothing, every move to the right costs, but four of them reach the goal."""

    def cost(action):
        moves = action[..., 1]
        return torch.where(moves.sum(-1) == 4, torch.zeros(()), 1 + moves.sum(-1))

    space = ActionSpec((0.0,) * 2, (1.0,) * 2, (0.5,) * 2, (0.5,) * 2, choices=2)
    for planner in PLANNERS.values():
        plan = planner.plan(Problem(cost, space, 4, 2, generator=generator()))
        assert plan.cost.tolist() == [0, 0] and (plan.action[..., 1] == 1).all()


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
@pytest.mark.parametrize("space", [GRID, ONE_HOT], ids=["grid", "one-hot"])
def test_contract(planner, space):
    check_planner(planner, space, horizon=2)


@pytest.mark.parametrize("planner", PLANNERS.values(), ids=PLANNERS)
def test_costs_that_are_not_numbers_never_win(planner):
    def cost(action):
        value = action.square().sum((2, 3))
        return torch.where(action[..., 0].mean(-1) > 0, value, torch.nan)

    plan = planner.plan(Problem(cost, PLANE, 4, 2, generator=generator()))
    assert plan.cost.isfinite().all()


def test_a_menu_is_the_choices_or_a_grid_of_the_bounds():
    assert torch.equal(menu_of(ONE_HOT, 3), torch.eye(4))
    grid = menu_of(PLANE, 3)
    assert sorted(map(tuple, grid.tolist())) == sorted(itertools.product((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0)))
    endless = ActionSpec((-math.inf,), (math.inf,), (1.0,), (0.5,))
    assert menu_of(endless, 3).tolist() == [[0.0], [1.0], [2.0]]
    with pytest.raises(InputError, match="fewer levels"):
        menu_of(ActionSpec((-1.0,) * 7, (1.0,) * 7, (0.0,) * 7, (1.0,) * 7), 3)


@pytest.mark.parametrize("hold", [1, 2, 3, 5])
def test_plans_survive_the_way_to_raw_actions_and_back(hold):
    for space in (ONE_HOT, PLANE):
        choices = Choices(Problem(lambda a: a, space, 4, 2), hold, 3)
        index = torch.randint(choices.choices, (2, 5, choices.count), generator=generator())
        raw = choices.raw(index)
        assert raw.shape == (2, 5, 4, space.width) and torch.equal(choices.index(raw), index)
        steps = raw.reshape(2, 5, 4 * space.block, -1)
        for start in range(0, steps.shape[2], hold):
            part = steps[:, :, start : start + hold]
            assert torch.equal(part, part[:, :, :1].expand_as(part))


@pytest.mark.parametrize("kind", [CategoricalCEM, TreeSearch])
def test_a_good_warm_start_is_not_lost(kind):
    problem, best = table(ONE_HOT, 3 if kind is CategoricalCEM else 2)
    good = kind().plan(problem)
    few = {"candidates": 8, "elites": 2, "iterations": 1, "keep": 1} if kind is CategoricalCEM else {"simulations": 2}
    again = kind(**few).plan(problem, good.action)
    assert (again.cost <= good.cost).all() and (good.cost < best * 1.3 + 0.1).all()


def test_elites_are_candidates_of_the_next_decision():
    problem, _ = table(ONE_HOT, 2)
    seen = []
    spied = Problem(lambda a: seen.append(a) or problem.cost(a), ONE_HOT, 2, 3, generator=generator())
    plan = CategoricalCEM(keep=3).plan(spied)
    warm = shift(torch.cat([plan.action.unsqueeze(1), plan.trace["elites"]], 1), 1)
    seen.clear()
    CategoricalCEM(keep=3).plan(spied, warm)
    assert torch.equal(seen[0][:, :4], warm)


def test_continuous_planners_refuse_choices_in_one_line():
    problem, _ = table(ONE_HOT, 2)
    for planner in (CEM(), GradientPlanner()):
        with pytest.raises(InputError, match="CategoricalCEM") as caught:
            planner.plan(problem)
        assert "\n" not in str(caught.value)


def test_specs_of_choices_are_checked_and_kept():
    for wrong in (1, 3):
        with pytest.raises(ValueError, match="choices"):
            ActionSpec((0.0,) * 4, (1.0,) * 4, (0.0,) * 4, (1.0,) * 4, choices=wrong)
    specs = Specs(ONE_HOT, ObservationSpec(4, 4))
    assert Specs.from_dict(specs.to_dict()) == specs
    old = specs.to_dict()
    del old["action"]["choices"]  # as checkpoints were before there were choices
    assert Specs.from_dict(old).action.choices == 0
    assert specs.differences(Specs.from_dict(old)) == ["action.choices: 4 != 0"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: CategoricalCEM(elites=0),
        lambda: CategoricalCEM(keep=17),
        lambda: CategoricalCEM(levels=1),
        lambda: CategoricalCEM(momentum=1.0),
        lambda: CategoricalCEM(iterations=0),
        lambda: TreeSearch(simulations=0),
        lambda: TreeSearch(rule="ucb"),
        lambda: TreeSearch(hold=0),
        lambda: TreeSearch(trust=-1.0),
    ],
)
def test_wrong_settings_are_refused_in_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)


class Corridor:
    """Latents are positions in the plane with a wall; a move into it does nothing. Knows only the last frame."""

    specs = Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (0.5,) * 2, 2), ObservationSpec(4, 4), EvalSpec())
    calls = 0

    def rollout(self, z, action, past=None):
        assert past is None or past.shape[1] == z.shape[1] - 1
        type(self).calls += 1
        place, path = z[:, -1:, 0].expand(-1, action.shape[1], -1), []
        for step in action.unbind(2):
            after = place + step.unflatten(-1, (2, 2)).mean(-2)
            blocked = (after[..., 0] > 0.5) & (after[..., 1] < 1.5)
            place = torch.where(blocked[..., None], place, after)
            path.append(place)
        return torch.stack(path, 2).unsqueeze(3)


@pytest.mark.parametrize("history", [1, 3])
def test_a_world_is_a_game_whose_rewards_add_up_to_the_distance(history):
    """The goal is behind a wall: the way leads away from it at first."""
    world, goal = Corridor(), torch.tensor([[[2.0, 0.0]], [[1.0, 2.0]]])
    z, past = torch.zeros(2, history, 1, 2), torch.zeros(2, history - 1, 4)
    game = GoalGame(world, goal, levels=3)
    root = game.root(z, past)
    Corridor.calls = 0
    found = search(root, game.step, 400, PUCT(), 5)
    assert Corridor.calls == 400, "one step of the world per simulation"
    first = game.menu[found.action]
    assert first[0, 1] > 0.5, "the first move is up, around the wall"
    state, gained = root.state, 0
    for action in ([5, 5], [8, 8], [4, 4]):
        after = game.step(state, torch.tensor(action))
        state, gained = after.state, gained + after.reward
    begin, end = ((p[:, -1] - goal).square().mean((1, 2)) for p in (z, state[0]))
    assert torch.allclose(gained, begin - end) and state[0].shape == z.shape


def test_heads_give_a_game_its_values_and_priors():
    class Value(torch.nn.Module):
        def forward(self, z):
            return z[:, 0, :, :1].sum(1)

    class Prior(torch.nn.Module):
        def forward(self, z):
            return torch.arange(9.0).expand(len(z), -1)

    game = GoalGame(Corridor(), torch.ones(2, 1, 2), value=Value(), prior=Prior(), discount=0.9)
    root = game.root(torch.tensor([[[[0.3, 0.0]]], [[[0.5, 0.0]]]]))
    assert root.value.tolist() == pytest.approx([0.3, 0.5]) and root.logits[1].tolist() == list(range(9))
    assert game.step(root.state, torch.tensor([0, 1])).discount.tolist() == pytest.approx([0.9, 0.9])
