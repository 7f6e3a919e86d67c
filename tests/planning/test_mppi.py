"""MPPI: what its temperature means, what its weights average, and a warm start that is aligned in time."""

from dataclasses import replace

import pytest
import torch

from jepa.errors import InputError
from jepa.planning import CEM, MPC, MPPI, GoalLatent, shift
from jepa.planning.mppi import path_weights
from jepa.schema import ActionSpec, EvalSpec, ObservationSpec, Problem, Sample, Specs

SPACE = ActionSpec((-1.0,), (1.0,), (0.1,), (0.4,))
CENTRE = torch.tensor([0.3, -0.6, 0.8, 0.0]).reshape(4, 1)


def problem(seen=None, centre=CENTRE):
    def cost(action):
        value = (action - centre).square().sum((2, 3))
        if seen is not None:
            seen.append((action.clone(), value))
        return value

    return Problem(cost, SPACE, 4, 2, generator=torch.Generator().manual_seed(0))


def entropy(weight):
    return -torch.xlogy(weight, weight).sum(-1)


def test_the_entropy_of_the_weights_falls_with_the_temperature():
    """Where a temperature that multiplies is taken for one that divides, a small one gives uniform weights."""
    cost = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    heats = [entropy(path_weights(cost, heat)) for heat in (100.0, 1.0, 0.1, 0.01, 0.001)]
    assert all((hot > cold).all() for hot, cold in zip(heats, heats[1:]))
    assert torch.allclose(heats[0], torch.tensor(64.0).log().expand(3), atol=1e-3)
    assert (path_weights(cost, 1e-6)[:, 0] > 0.99).all()


def test_weights_have_the_closed_form_whatever_the_offset_of_the_cost():
    cost = torch.tensor([[1.0, 1.5, 3.0]])
    expected = torch.exp(-torch.tensor([[0.0, 0.5, 2.0]]) / 0.25)
    expected = expected / expected.sum()
    assert torch.allclose(path_weights(cost, 0.25), expected)
    assert torch.allclose(path_weights(cost * 8 + 64, 2.0), expected), "a scaled cost wants a scaled temperature"
    assert torch.allclose(torch.softmax(-4.0 * cost, dim=1), expected), "the meaning that multiplies: one over this one"


def test_infinite_costs_have_no_weight_unless_all_are():
    assert path_weights(torch.tensor([[0.0, torch.inf, torch.inf]]), 1.0).tolist() == [[1.0, 0.0, 0.0]]
    assert path_weights(torch.full((1, 4), torch.inf), 1.0).tolist() == [[0.25] * 4]


def test_a_refit_is_the_weighted_mean_and_deviation():
    elites, cost = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 3, 1, 1), torch.tensor([[0.0, 1.0, 2.0]])
    weight = torch.softmax(-cost[0] / 0.7, dim=0)
    mean, std = MPPI(temperature=0.7).fit(elites, cost)
    expected = weight[1] + 4 * weight[2]
    assert mean.item() == pytest.approx(expected.item())
    assert std.item() == pytest.approx((weight @ (elites.flatten() - expected).square()).sqrt().item())


def test_hot_is_the_plain_average_of_the_elites_and_cold_the_best():
    options = {"candidates": 64, "elites": 8, "first_iterations": 1}
    seen = []
    hot = MPPI(**options, temperature=1e6).plan(problem(seen))
    assert torch.allclose(hot.action, CEM(**options).plan(problem()).action, atol=1e-4)
    best = seen[0][0].gather(1, seen[0][1].argmin(1)[:, None, None, None].expand(-1, -1, 4, 1))[:, 0]
    assert torch.allclose(MPPI(**options, temperature=1e-6).plan(problem()).action, best, atol=1e-4)


def test_all_candidates_have_a_weight_unless_there_are_elites():
    assert MPPI(candidates=50).elites == 50 and MPPI(candidates=50, elites=5).elites == 5


@pytest.mark.parametrize("low,high", [(0.3, 0.3), (0.05, 0.2), (1.0, 2.0)])
def test_the_standard_deviation_stays_between_its_limits(low, high):
    space = ActionSpec((-1e3,), (1e3,), (0.1,), (0.4,))
    seen = []
    spied = problem(seen)
    wide = Problem(spied.cost, space, 4, 1, generator=spied.generator)
    MPPI(2000, temperature=10.0, first_iterations=4, std=3.0, min_std=low, max_std=high).plan(wide)
    for action, _ in seen[1:4]:
        spread = (action[:, 1:] / 0.4).std(1)
        assert (spread > 0.9 * low).all() and (spread < 1.1 * high).all()


class World:
    """The latent is the sum of the actions so far; every frame is the origin."""

    specs = Specs(ActionSpec((-1.0,) * 2, (1.0,) * 2, (0.0,) * 2, (0.5,) * 2, 2), ObservationSpec(4, 4), EvalSpec())

    def encode(self, sample):
        return sample.video[:, :, :2, 0, 0].float().unsqueeze(2) / 10

    def rollout(self, z, action, past=None):
        return (z[:, -1:] + action.unflatten(-1, (2, 2)).sum(-2).cumsum(2)).unsqueeze(3)


@pytest.mark.parametrize("execute", [1, 2])
def test_the_warm_start_is_shifted_by_what_was_executed(execute):
    """One published MPPI carries its mean over without moving it in time."""
    first, plans = [], []

    class Spy(MPPI):
        def plan(self, problem, warm=None):
            asked = []
            spying = replace(problem, cost=lambda action: asked.append(action) or problem.cost(action))
            plans.append(super().plan(spying, warm))
            first.append(asked[0][:, 0])
            return plans[-1]

    policy = MPC(World(), Spy(), GoalLatent(), horizon=4, execute=execute)
    goal = Sample(video=torch.full((1, 1, 3, 4, 4), 30, dtype=torch.uint8))
    present = Sample(video=torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), goal=goal)
    for _ in range(2 * execute + 1):
        policy.act(present)
    assert len(plans) == 2 and not torch.allclose(plans[0].action[:, 0], plans[0].action[:, execute], atol=0.05)
    assert torch.allclose(first[1], shift(plans[0].action, execute), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"min_std": 1.0, "max_std": 0.5}, {"beta": -1.0}, {"candidates": 1}, {"elites": 1}],
)
def test_wrong_settings_are_refused_in_one_line(options):
    with pytest.raises(InputError, match="MPPI") as caught:
        MPPI(**options)
    assert "\n" not in str(caught.value)
