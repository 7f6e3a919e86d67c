"""A search that is cut answers with the best that it saw; one that ends in time is untouched."""

import pytest
import torch

from jepa.errors import InputError
from jepa.planning import CEM, ICEM, GradientPlanner, RandomShooting, TimeLimit, deadline
from jepa.schema import ActionSpec, Plan, Problem
from jepa.testing import check_planner

SPACE = ActionSpec((-2.0,) * 2, (2.0,) * 2, (0.0,) * 2, (1.0,) * 2)


class Clock:
    """Tells how many seconds passed: one for every evaluation."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(deadline, "perf_counter", lambda: self.now)


def problem(clock, centre=0.5, seed=0, asked=None):
    def cost(action):
        clock.now += 1
        if asked is not None:
            asked.append(action)
        return (action - centre).square().mean((2, 3))

    return Problem(cost, SPACE, 3, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [CEM, ICEM, RandomShooting, GradientPlanner])
def test_with_time_enough_it_is_the_planner_itself(kind):
    check_planner(TimeLimit(kind(), 1e6))


def test_in_time_is_as_without_a_limit(monkeypatch):
    clock = Clock(monkeypatch)
    free, bound = ICEM().plan(problem(clock)), TimeLimit(ICEM(), 1000).plan(problem(clock))
    assert torch.equal(free.action, bound.action) and "elites" in bound.trace


@pytest.mark.parametrize("seconds, evaluations", [(0.5, 1), (1, 1), (1.5, 2), (3, 3)])
def test_the_cheapest_seen_is_taken_when_the_time_is_up(monkeypatch, seconds, evaluations):
    clock, asked = Clock(monkeypatch), []
    plan = TimeLimit(CEM(), seconds).plan(problem(clock, asked=asked))
    assert len(asked) == evaluations and clock.now == evaluations and set(plan.trace) == {"cut"}
    every = torch.cat(asked, dim=1)
    costs = (every - 0.5).square().mean((2, 3))
    assert torch.equal(plan.cost, costs.min(1).values)
    assert torch.equal(plan.action, every[torch.arange(2), costs.argmin(1)])


def test_candidates_without_a_cost_are_never_the_best(monkeypatch):
    clock = Clock(monkeypatch)

    class Twice:
        def plan(self, problem, warm=None):
            for value in (1.0, 2.0, 3.0):
                problem.cost(torch.full((1, 2, 3, 2), value))
            return Plan(torch.zeros(1, 3, 2), torch.zeros(1))

    asked = Problem(lambda a: torch.where(a[..., 0, 0] == 1, torch.nan, a.mean((2, 3))) + 0 * tick(clock), SPACE, 3, 1)
    assert TimeLimit(Twice(), 2).plan(asked).action.unique().tolist() == [2.0]


def tick(clock):
    clock.now += 1
    return 1.0


def test_what_came_before_the_search_counts_where_it_is_told(monkeypatch):
    clock, asked = Clock(monkeypatch), []
    limit = TimeLimit(CEM(), 3)
    limit.begin()
    clock.now += 2.5
    limit.plan(problem(clock, asked=asked))
    assert len(asked) == 1


def test_a_limit_is_a_positive_time():
    for seconds in (0, -1, float("nan")):
        with pytest.raises(InputError, match="more than 0"):
            TimeLimit(CEM(), seconds)
