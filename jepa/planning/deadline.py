"""A search that ends in time, with the best that it has."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.planning.sampling import better, winner
from jepa.schema import Plan, Planner, Problem


class _TimeIsUp(Exception):
    """Leaves a planner from within its question for a cost."""


class TimeLimit:
    """A planner whose search is cut when its time is up: the cheapest plan that it has seen is its answer.

    The clock is looked at whenever the planner asks what candidates cost: a question that begins in time is answered,
    the next is not. At least the first is, so that a search takes the limit and one evaluation at the longest, or one
    evaluation alone. A planner that ends in time gives its own answer, as without a limit. Of several environments in
    a batch all are cut at once. On CUDA every evaluation is waited for. Planners that never ask for costs are not cut:
    collocation, and tree search over choices outside of a :class:`jepa.schema.Problem`.

    The trace of a plan that was cut holds ``cut [1]`` and nothing else.

    Args:
        planner: what searches
        seconds: of a search
    """

    def __init__(self, planner: Planner, seconds: float) -> None:
        if not seconds > 0:
            raise InputError(f"TimeLimit was given seconds={seconds}: expected more than 0")
        self.planner, self.seconds = planner, seconds
        self._begun: float | None = None

    def begin(self) -> None:
        """From now on the time counts, also for what comes before the search, until the next call."""
        self._begun = perf_counter()

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        end = (perf_counter() if self._begun is None else self._begun) + self.seconds
        best = _Best(problem, end)
        try:
            return self.planner.plan(replace(problem, cost=best.price), warm)
        except _TimeIsUp:
            assert best.action is not None and best.cost is not None, "the first evaluation was cut"
            return Plan(best.action, best.cost, {"cut": torch.ones(1)})


class _Best:
    """The cheapest plan of each environment among all whose cost was asked for."""

    def __init__(self, problem: Problem, end: float) -> None:
        self.problem, self.end = problem, end
        self.action: Tensor | None = None  # [B,H,A]
        self.cost: Tensor | None = None  # [B]

    def price(self, action: Tensor) -> Tensor:
        """As the problem's cost: raw actions [B,S,H,A] -> [B,S]."""
        if self.action is not None and perf_counter() >= self.end:
            raise _TimeIsUp
        cost = self.problem.cost(action)
        self._remember(action.detach(), cost.detach().float().nan_to_num(nan=torch.inf))
        if torch.device(self.problem.device).type == "cuda":
            torch.cuda.synchronize(self.problem.device)
        return cost

    def _remember(self, action: Tensor, cost: Tensor) -> None:
        best, value = winner(action, cost)
        if self.action is not None and self.cost is not None:
            best, value = better(self.action, self.cost, best, value)
        self.action, self.cost = best, value
