"""The gradient planner: it follows the gradient, by Adam, through a world model, within the bounds."""

import pytest
import torch

from jepa.errors import InputError
from jepa.models.encoders import ConvNet
from jepa.models.predictors import ActionPredictor
from jepa.models.targets import Online
from jepa.models.world import WorldModel
from jepa.planning import MPC, GoalLatent, GradientPlanner, Knots
from jepa.planning.gradient import Adam, cosine
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Problem, Sample, Specs

WIDE = ActionSpec((-50.0,) * 2, (50.0,) * 2, (0.3, -1.0), (0.5, 2.0), block=2)
CENTRE = torch.tensor([[0.5, -0.5, 1.0, 2.0], [0.0, 0.2, -1.0, 0.4], [0.6, 1.0, 0.7, -2.0]])  # [H,A]
SCALE = torch.tensor([1.0, 30.0, 0.1, 3.0])  # of the cost: an ill-conditioned bowl


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(action):
    return ((action - CENTRE).square() * SCALE).sum((2, 3))


def problem(cost=bowl, space=WIDE):
    return Problem(cost, space, len(CENTRE), 2, generator=generator())


def test_the_slope_is_the_derivative_by_finite_differences():
    for hold in (1, 2, 4, 5):
        space = Knots(problem(), hold)
        knots = torch.randn(2, 3, space.count, 2, generator=generator(1))
        cost, gradient = space.slope(knots)
        assert torch.allclose(cost, space.cost(knots)) and gradient.shape == knots.shape
        step = torch.zeros_like(knots)
        step[:, :, -1, 1] = 1e-2
        change = (space.cost(knots + step) - space.cost(knots - step)) / 2e-2
        assert torch.allclose(change, gradient[:, :, -1, 1], rtol=1e-3, atol=1e-2)


def test_adam_moves_the_actions_by_the_learning_rate_and_is_not_gradient_descent():
    """A published planner never steps its Adam: its update is plain gradient descent."""
    asked = []
    spied = problem(lambda action: asked.append(action.detach().clone()) or bowl(action))
    GradientPlanner(candidates=1, first_iterations=4, lr=0.1).plan(spied)
    space = Knots(problem(), 1)
    path = [space.knots(action) for action in asked]
    moved = path[1] - path[0]
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.1), atol=1e-4), "the first step of Adam has size lr"
    gradient = space.slope(path[0])[1]
    assert torch.equal(moved.sign(), -gradient.sign())
    assert gradient.abs().max() > 100 * gradient.abs().min(), "plain descent would follow these sizes"


def test_the_update_is_that_of_torch():
    """At a constant learning rate the second moment and its correction are those of torch.optim.Adam."""
    theirs = torch.randn(3, 4, 2).requires_grad_()
    knots = theirs.detach().clone()
    adam, optimizer = Adam(knots), torch.optim.Adam([theirs], lr=0.1)
    for step in range(12):
        theirs.grad = torch.randn(3, 4, 2) * 10.0 ** (step % 3)
        knots = knots - adam.step(theirs.grad, 0.1)
        optimizer.step()
        assert torch.allclose(knots, theirs.detach(), atol=1e-5)


def test_the_steps_shrink_to_nothing():
    rates = cosine(0.3, 10)
    assert rates[0] == 0.3 and rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.01


def test_an_action_at_its_bound_can_leave_it():
    """The gradient of a clipped action is zero beyond the bound and half on it: it would stay there forever."""
    space = ActionSpec((-1.0,), (1.0,), (0.1,), (0.3,))
    target = Problem(lambda a: (a - 0.2).square().sum((2, 3)), space, 4, 2, generator=generator())
    for bound in (-1.0, 1.0):
        warm = torch.full((2, 4, 1), bound)
        plan = GradientPlanner(candidates=1, iterations=60).plan(target, warm)
        assert torch.allclose(plan.action, torch.full_like(plan.action, 0.2), atol=0.02)


def test_every_iterate_is_projected(monkeypatch):
    """Iterates that run on beyond a bound would have to come all the way back before an action moves again."""
    space = ActionSpec((-1.0,), (1.0,), (0.1,), (0.3,))
    target = Problem(lambda a: -a.sum((2, 3)), space, 4, 2, generator=generator())
    inside, slope = Knots(target, 1), Knots.slope
    seen = []
    monkeypatch.setattr(Knots, "slope", lambda self, knots: seen.append(knots) or slope(self, knots))
    GradientPlanner(lr=1.0).plan(target)
    assert len(seen) == 30 and all(((knots >= inside.low) & (knots <= inside.high)).all() for knots in seen)


def test_many_starts_leave_a_local_minimum():
    def cost(action):
        x = action.squeeze(-1).squeeze(-1)
        return (x.square() - 1).square() + 0.3 * x  # minima near -1 (global) and +1

    space = ActionSpec((-3.0,), (3.0,), (0.9,), (1.0,))
    target = Problem(cost, space, 1, 2, generator=generator())
    one, many = (GradientPlanner(candidates=count).plan(target) for count in (1, 16))
    assert (one.action > 0.8).all() and (many.action < -0.8).all() and (many.cost < one.cost).all()


def test_the_best_plan_that_was_seen_is_returned():
    costs = []
    plan = GradientPlanner(lr=2.0).plan(problem(lambda action: costs.append(bowl(action)) or costs[-1]))
    assert torch.equal(plan.cost, torch.cat(costs, dim=1).min(1).values.detach())
    assert (plan.trace["best"].diff(dim=0) <= 0).all() and not plan.action.requires_grad


def test_starts_without_a_finite_gradient_stay_and_lose():
    def cost(action):
        return (action.mean((2, 3)) - 1).sqrt() + action.square().mean((2, 3))  # no number below a mean of 1

    space = ActionSpec((-3.0,), (3.0,), (1.0,), (1.0,))
    plan = GradientPlanner().plan(Problem(cost, space, 2, 2, generator=generator()))
    assert plan.cost.isfinite().all() and plan.action.isfinite().all()


@pytest.mark.parametrize("history,chunk", [(1, None), (2, 3)])
def test_it_plans_through_a_world_model_under_inference_mode(history, chunk):
    """Latents encoded in inference mode cannot be saved for backward; the ring of the predictor may not be reused."""
    torch.manual_seed(0)
    policy = MPC(world(history), GradientPlanner(8, 20, 30), GoalLatent(), horizon=3, chunk=chunk)
    frames = torch.randint(0, 255, (2, 2, 3, 32, 32), dtype=torch.uint8, generator=generator())
    present = Sample(video=frames[:, :1], goal=Sample(video=frames[:, 1:]))
    plans = []
    keep = policy._keep
    policy._keep = lambda plan, rows: plans.append(plan) or keep(plan, rows)
    with torch.inference_mode():
        for _ in range(3):
            action = policy.act(present)
    assert action.shape == (2, 2) and (action.abs() <= 1).all()
    assert (plans[0].trace["best"][-1] < plans[0].trace["best"][0]).all()
    assert all(parameter.grad is None for parameter in policy.world.parameters())


def world(history):
    model = WorldModel(ConvNet(dim=16, size=32), ActionPredictor(dim=16, width=32, depth=2, window=2), Online())
    action = ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (0.5,) * 2)
    model.bind(Specs(action, ObservationSpec(32, 32), EvalSpec(history=history)))
    for parameter in model.parameters():  # at first, the predictor forecasts no change
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator()))
    return model


@pytest.mark.parametrize(
    "cost", [lambda a: a.detach().square().sum((2, 3)), lambda a: torch.ones(a.shape[:2], requires_grad=True) * 2]
)
def test_a_cost_without_a_gradient_is_refused_in_one_line(cost):
    with pytest.raises(InputError, match="differentiable") as caught:
        GradientPlanner().plan(problem(cost))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"candidates": 0}, {"iterations": 0}, {"hold": 0}, {"lr": 0.0}, {"warm_std": 0.0}])
def test_wrong_settings_are_refused_in_one_line(options):
    with pytest.raises(InputError, match="GradientPlanner") as caught:
        GradientPlanner(**options)
    assert "\n" not in str(caught.value)
