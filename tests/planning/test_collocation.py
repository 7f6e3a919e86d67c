"""Collocation with virtual states: it asks for one-step forecasts, and cuts the gradient of the states."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jepa.errors import InputError
from jepa.models.encoders import ConvNet
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import Online
from jepa.models.world import WorldModel
from jepa.planning import MPC, Collocation, Disagreement, GoalLatent
from jepa.planning.collocation import _spread
from jepa.planning.imagining import forecast_steps
from jepa.schema import ActionSpec, Dynamics, EvalSpec, ObservationSpec, Plan, Problem, Sample, Specs
from jepa.testing import check_planner

SPACE = ActionSpec((-50.0,) * 2, (50.0,) * 2, (0.3, -1.0), (0.5, 2.0))
A = torch.tensor([[1.0, 0.1], [-0.1, 0.95]])
B = torch.tensor([[0.5, 0.1], [0.0, 0.4]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(space=SPACE, horizon=6, batch=3, penalty=0.3, spy=None):
    """s' = A s + B u, cost |s_h - goal|^2 summed + penalty |u|^2: (problem, optimum [B] by least squares)."""
    start, goal = 0.5 * torch.randn(2, batch, 2, generator=generator(7))

    def rollout(action):
        state, path = start[:, None].expand(-1, action.shape[1], -1), []
        for u in action.unflatten(-1, (-1, 2)).sum(-2).unbind(2):
            state = state @ A.T + u @ B.T
            path.append(state)
        return torch.stack(path, 2).unsqueeze(3)

    def forecast(z, action):
        if spy is not None:
            spy.append((z, action))
        before = torch.cat([start[:, None, None, None].expand(-1, z.shape[1], -1, -1, -1), z[:, :, :-1]], 2)
        return before @ A.T + (action.unflatten(-1, (-1, 2)).sum(-2) @ B.T).unsqueeze(3)

    def score(z, action):
        return (z[..., 0, :] - goal[:, None, None]).square().sum((2, 3)) + penalty * action.square().sum((2, 3))

    def cost(action):
        return score(rollout(action), action)

    problem = Problem(
        cost, space, horizon, batch, generator=generator(), dynamics=Dynamics(rollout, forecast, score)
    )
    size = horizon * space.width

    def residual(action):
        z = rollout(action)[..., 0, :] - goal[:, None, None]
        return torch.cat([z.flatten(2), penalty**0.5 * action.flatten(2)], -1).double()

    basis = torch.cat([torch.zeros(1, size), torch.eye(size)]).reshape(1, size + 1, horizon, -1)
    rows = residual(basis.expand(batch, -1, -1, -1))
    offset, matrix = rows[:, 0], (rows[:, 1:] - rows[:, :1]).transpose(1, 2)
    solution = torch.linalg.lstsq(matrix, -offset.unsqueeze(-1)).solution
    return problem, (matrix @ solution + offset.unsqueeze(-1)).square().sum((1, 2)).float()


@pytest.mark.parametrize("block", [1, 2])
def test_linear_dynamics_and_quadratic_cost_are_solved_within_one_percent(block):
    space = ActionSpec((-50.0,) * 2, (50.0,) * 2, (0.3, -1.0), (0.5, 2.0), block)
    problem, best = linear(space, horizon=6 // block)
    plan = Collocation(candidates=8, first_iterations=60, sync_steps=15).plan(problem)
    assert (best > 0.01).all() and (plan.cost <= 1.01 * best).all(), (plan.cost / best).tolist()
    assert (plan.cost >= best - 1e-4).all() and torch.allclose(problem.cost(plan.action[:, None])[:, 0], plan.cost)


def test_the_virtual_states_alone_come_near_the_optimum_of_a_dense_cost():
    """Without any step through a rollout but the judging ones."""
    problem, best = linear(horizon=8)
    idle = problem.cost(torch.zeros(3, 1, 8, 2))[:, 0]
    plan = Collocation(first_iterations=80, sync_every=20, sync_steps=1, lr=0.1).plan(problem)
    assert (plan.cost - best < 0.25 * (idle - best)).all(), (plan.cost, best, idle)


def test_states_get_no_gradient_as_inputs_and_close_the_gap():
    seen = []
    problem, _ = linear(spy=seen)
    plan = Collocation(first_iterations=14, sync_every=14, noise=0.0, lr=0.01).plan(problem)
    assert len(seen) == 14 and all(not z.requires_grad and action.requires_grad for z, action in seen)
    assert (plan.trace["gap"][0] < 1e-9).all(), "a rollout is consistent"
    shaken = Collocation(first_iterations=14, sync_every=14, noise=0.5, lr=0.01).plan(problem)
    gap = shaken.trace["gap"]
    assert (gap[1:].amax(0) > 1e-3).all() and (gap[-1] < 0.1 * gap.amax(0)).all(), "the noise falls, the gap closes"


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_plan_that_diverges_spoils_no_other(broken):
    """Whose states are no numbers: the others of its environment keep their states, noise and gap."""
    problem, _ = linear(batch=2)
    given, seen = problem.dynamics, []

    def rollout(action):
        path = given.rollout(action).clone()
        path[0, 3] = broken
        return path

    def forecast(z, action):
        seen.append(z.isfinite().flatten(2).all(2))
        return given.forecast(z, action)

    problem = dataclasses.replace(problem, dynamics=Dynamics(rollout, forecast, given.score))
    plan = Collocation(candidates=5, first_iterations=6, sync_every=3).plan(problem)
    expected = torch.ones(2, 5, dtype=torch.bool)
    expected[0, 3] = False
    assert len(seen) == 6 and all(torch.equal(finite, expected) for finite in seen)
    assert plan.cost.isfinite().all() and not plan.trace["gap"].isnan().any()


def test_the_spread_is_that_of_the_finite_plans():
    states = torch.randn(2, 6, 3, 1, 4, generator=generator())
    plain = states.std(1, keepdim=True, correction=0)
    assert torch.allclose(_spread(states), plain)
    states[1, 2], states[1, 4] = torch.nan, torch.inf
    kept = states[1:, [0, 1, 3, 5]].std(1, keepdim=True, correction=0)
    assert torch.allclose(_spread(states), torch.cat([plain[:1], kept]))
    assert (_spread(torch.full((1, 2, 3, 1, 4), torch.nan)) == 0).all()


def test_an_action_is_moved_by_its_own_step_alone():
    """With a cost of the end only, no action but the last has a gradient from it; the others follow the states."""
    problem, _ = linear(horizon=4)
    states = problem.dynamics.rollout(torch.zeros(3, 1, 4, 2))
    action = torch.zeros(3, 1, 4, 2, requires_grad=True)
    forecast = problem.dynamics.forecast(states, action)
    (gradient,) = torch.autograd.grad(forecast[:, :, -1].square().sum(), action)
    assert gradient[:, :, :-1].abs().max() == 0 and gradient[:, :, -1].abs().min() > 0


def test_bounds_order_and_repetition():
    space = ActionSpec((-1.0, -0.2), (1.0, 0.2), (0.5, 0.1), (0.2, 3.0), block=2)
    problem, _ = linear(space, 3)
    seen = []
    spied = Problem(
        lambda a: seen.append(a.detach()) or problem.cost(a), space, 3, 3, "cpu", generator(), problem.dynamics
    )
    plan = Collocation().plan(spied)
    low, high = (torch.tensor(bound * 2) for bound in (space.low, space.high))
    assert all(((action >= low) & (action <= high)).all() for action in [*seen, plan.action])
    again = Collocation().plan(linear(space, 3)[0])
    assert torch.equal(plan.action, again.action)


class Wrapped:
    """Collocation for problems without dynamics, whose states are the actions themselves: what the contract asks."""

    def plan(self, problem, warm=None) -> Plan:
        def states(action):
            return action.unsqueeze(3)

        dynamics = Dynamics(states, lambda z, action: states(action), lambda z, action: problem.cost(z[:, :, :, 0]))
        given = problem.cost, problem.space, problem.horizon, problem.batch, problem.device, problem.generator
        return Collocation().plan(Problem(*given, dynamics), warm)


def test_contract():
    check_planner(Wrapped())


def world(history):
    torch.manual_seed(0)
    model = WorldModel(ConvNet(dim=16, size=32), ActionPredictor(dim=16, width=32, depth=2, window=4), Online())
    action = ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (0.5,) * 2)
    model.bind(Specs(action, ObservationSpec(32, 32), EvalSpec(history=history)))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator()))
    return model.eval()


@pytest.mark.parametrize("history", [1, 2])
def test_one_step_forecasts_along_a_rollout_are_the_rollout(history):
    model = world(history)
    z, past = torch.randn(2, history, 1, 16, generator=generator()), None
    if history > 1:
        past = torch.randn(2, history - 1, 2, generator=generator(1))
    action = torch.randn(2, 3, 5, 2, generator=generator(2))
    with torch.no_grad():
        path = model.rollout(z, action, past)
        assert torch.allclose(forecast_steps(model, z, past, path, action), path, atol=1e-5)


@pytest.mark.parametrize("history,chunk", [(1, None), (2, 3)])
def test_it_plans_through_a_world_model_under_inference_mode(history, chunk):
    policy = MPC(world(history), Collocation(6, 6, 12, sync_every=4), GoalLatent(), horizon=3, chunk=chunk)
    frames = torch.randint(0, 255, (2, 2, 3, 32, 32), dtype=torch.uint8, generator=generator())
    present, plans = Sample(video=frames[:, :1], goal=Sample(video=frames[:, 1:])), []
    keep = policy._keep
    policy._keep = lambda plan, rows: plans.append(plan) or keep(plan, rows)
    with torch.inference_mode():
        for _ in range(3):
            assert (policy.act(present).abs() <= 1).all()
    assert (plans[0].trace["best"][-1] < plans[0].trace["best"][0] + 1e-6).all()
    assert all(parameter.grad is None for parameter in policy.world.parameters())


class NoSync(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function) and "nonzero" not in str(function), f"host reads: {function}"
        return function(*args, **(kwargs or {}))


def test_no_value_is_read_by_the_host():
    problem, _ = linear(horizon=3)
    with NoSync():
        Collocation(4, 2, 3, sync_every=2).plan(problem)


def test_a_problem_without_dynamics_is_refused_in_one_line():
    class Blind:
        specs = world(1).specs

        def encode(self, sample):
            return sample.video[:, :, :2, 0, 0].float().unsqueeze(2) / 10

        def rollout(self, z, action, past=None):
            return (z[:, -1:] + action.cumsum(2)).unsqueeze(3)

    frames = torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(InputError, match="GradientPlanner") as caught:
        MPC(Blind(), Collocation(), GoalLatent(), 3).act(Sample(video=frames, goal=Sample(video=frames)))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="ensemble"):
        MPC(Blind(), Collocation(), GoalLatent() + Disagreement(), 3)


@pytest.mark.parametrize(
    "options", [{"candidates": 0}, {"sync_every": 0}, {"lr": 0.0}, {"state_rate": 1.5}, {"noise": -1.0}, {"hold": 0}]
)
def test_wrong_settings_are_refused_in_one_line(options):
    with pytest.raises(InputError, match="Collocation") as caught:
        Collocation(**options)
    assert "\n" not in str(caught.value)
