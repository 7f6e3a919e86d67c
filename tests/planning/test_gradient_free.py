"""Nevergrad as a planner, where it is installed; and what is said where it is not."""

import sys

import pytest
import torch

from jepa.errors import InputError
from jepa.planning import Nevergrad
from jepa.schema import ActionSpec, Problem
from jepa.testing import check_planner

SPACE = ActionSpec((-50.0,) * 2, (50.0,) * 2, (0.3, -1.0), (0.5, 2.0))


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    with pytest.raises(InputError, match=r"jepa-worlds\[compare\]") as caught:
        Nevergrad()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"candidates": 0}, {"iterations": 0}, {"hold": 0}, {"std": 0.0}])
def test_wrong_settings_are_refused_in_one_line(options):
    with pytest.raises(InputError, match="Nevergrad wants") as caught:
        Nevergrad(**options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def package():
    return pytest.importorskip("nevergrad", exc_type=ImportError, reason="pip install 'jepa-worlds[compare]'")


def test_an_unknown_optimizer_is_refused_by_name(package):
    with pytest.raises(InputError, match="did you mean 'DiagonalCMA'"):
        Nevergrad("DiagonalCNA")


@pytest.mark.parametrize("name", ["Powell", "SQP", "Cobyla", "NelderMead"])
def test_an_optimizer_that_goes_one_by_one_is_refused_unless_it_may(package, name):
    with pytest.raises(InputError, match=f"{name} goes one by one and was given candidates=8; set candidates to 1"):
        Nevergrad(name, candidates=8)
    generator = torch.Generator().manual_seed(0)
    problem = Problem(lambda action: action.square().sum((2, 3)), SPACE, 2, 1, generator=generator)
    assert Nevergrad(name, candidates=1, first_iterations=6).plan(problem).cost.isfinite().all()


@pytest.mark.parametrize("name", ["DiagonalCMA", "OnePlusOne"])
def test_contract(package, name):
    check_planner(Nevergrad(name, candidates=32, first_iterations=6, iterations=2, hold=3))


def test_linear_dynamics_and_quadratic_cost_are_solved_within_one_percent(package):
    draw = torch.Generator().manual_seed(7)
    start, goal = torch.randn(2, 2, 1, 1, 2, generator=draw)

    def cost(action):
        path = start + 0.5 * action.cumsum(2)
        return (path - goal).square().sum((2, 3)) + 0.3 * action.square().sum((2, 3))

    action = torch.zeros(2, 1, 3, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([action], max_iter=200)
    optimizer.step(lambda: (optimizer.zero_grad(), loss := cost(action).sum(), loss.backward())[1])
    problem = Problem(cost, SPACE, 3, 2, generator=torch.Generator().manual_seed(0))
    plan = Nevergrad("CMA", candidates=16, first_iterations=60).plan(problem)
    assert (plan.cost <= 1.01 * cost(action.detach())[:, 0]).all()


def test_bounds_may_be_missing_and_costs_may_be_no_numbers(package):
    space = ActionSpec((-float("inf"), -1.0), (float("inf"), 1.0), (0.1, 0.0), (0.5, 0.2))

    def cost(action):
        value = action.square().sum((2, 3))
        return torch.where(action[..., 0].mean(-1) > 0, value, torch.nan)

    plan = Nevergrad(candidates=16, first_iterations=4).plan(
        Problem(cost, space, 3, 2, generator=torch.Generator().manual_seed(0))
    )
    assert plan.cost.isfinite().all() and (plan.action[..., 1].abs() <= 1).all()
