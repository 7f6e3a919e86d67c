"""Planners that sample: random shooting, the cross-entropy method (CEM) and its sample-efficient form (iCEM).

They see a cost and an action space, never a network. All environments and candidates are one batch, nothing waits for
the device, and the generator of the problem is the only source of chance. Every environment is given the same noise,
so a plan does not depend on the order of the environments in the batch, nor on how many stand beside it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.planning.knots import Knots
from jepa.schema import Plan, Problem


def draw(space: Knots, mean: Tensor, std: Tensor, extra: Tensor, count: int, beta: float = 0.0) -> Tensor:
    """[B,count,K,a]: the mean, the plans that are carried on, and new ones."""
    extra = extra[:, : count - 1]
    fresh = mean.unsqueeze(1) + std.unsqueeze(1) * space.noise(count - 1 - extra.shape[1], beta)
    return torch.cat([mean.unsqueeze(1), extra, space.clamp(fresh)], dim=1)


def cheapest(knots: Tensor, cost: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` cheapest of [B,S,K,a] or of [B,S,K] with their costs [B,count], best first."""
    value, index = cost.topk(count, dim=1, largest=False, sorted=True)
    return knots.take_along_dim(index.reshape(*index.shape, *[1] * (knots.ndim - 2)), dim=1), value


def winner(knots: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest of [B,S,K,a] as [B,K,a], or of [B,S,K] as [B,K], with its cost [B]."""
    plan, value = cheapest(knots, cost, 1)
    return plan[:, 0], value[:, 0]


def better(old: Tensor, old_cost: Tensor, new: Tensor, new_cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheaper of two plans [B,K,a] or [B,K], environment by environment, with its cost [B]."""
    wins = (new_cost < old_cost).view(-1, *[1] * (new.ndim - 1))
    return torch.where(wins, new, old), torch.minimum(new_cost, old_cost)


def _blend(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    return momentum * old + (1 - momentum) * new


class RandomShooting:
    """Draw plans once, around the mean action of the training data, and take the cheapest: the floor of all planners.

    A warm start is one of the candidates; nothing is drawn around it.

    Args:
        candidates: plans that are compared; the first is the mean action
        std: standard deviation, in units of the normalised actions
        beta: the power of the noise falls with frequency as f^-beta; 0 is white
        hold: environment steps for which an action is held
    """

    def __init__(self, candidates: int = 512, std: float = 1.0, beta: float = 0.0, hold: int = 1) -> None:
        if candidates < 2 or hold < 1 or std <= 0 or beta < 0:
            raise InputError(
                f"RandomShooting wants candidates >= 2, hold >= 1, std > 0 and beta >= 0, was given "
                f"candidates={candidates}, hold={hold}, std={std}, beta={beta}"
            )
        self.candidates, self.std, self.beta, self.hold = candidates, std, beta, hold

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """The trace holds the ``best`` cost [1,B]. ``warm``: raw plans [B,H,A] or [B,W,H,A], all of them candidates."""
        space = Knots(problem, self.hold)
        mean = space.begin(None)[:, 0]
        extra = mean.unsqueeze(1)[:, :0] if warm is None else space.begin(warm)
        knots = draw(space, mean, torch.full_like(mean, self.std), extra, self.candidates, self.beta)
        best, cost = winner(knots, space.cost(knots))
        return Plan(space.raw(best), cost, {"best": cost[None]})


class CEM:
    """Cross-entropy method: sample, keep the elites, fit a Gaussian to them, repeat (Rubinstein 1999).

    Standard deviations are in units of the normalised actions.

    Args:
        candidates: plans that are compared in every iteration; the first is the mean
        elites: how many of the best the next mean and standard deviation are fitted to
        iterations: with a warm start
        first_iterations: without one, at the first decision of an episode
        std: standard deviation of the first iteration
        warm_std: the same with a warm start; ``std`` by default
        min_std: the standard deviation never falls below
        momentum: share of the old mean and standard deviation that a refit keeps
        hold: environment steps for which an action is held
        result: ``mean`` of the last elites, or the ``best`` plan that was seen
    """

    beta: float = 0.0  # white noise
    keep: int = 0  # no elite outlives its iteration
    max_std: float = math.inf

    def __init__(
        self,
        candidates: int = 128,
        elites: int = 16,
        iterations: int = 3,
        first_iterations: int = 8,
        std: float = 1.0,
        warm_std: float | None = None,
        min_std: float = 0.1,
        momentum: float = 0.0,
        hold: int = 1,
        result: Literal["mean", "best"] = "mean",
    ) -> None:
        self.candidates, self.elites = candidates, elites
        self.iterations, self.first_iterations = iterations, first_iterations
        self.std, self.warm_std, self.min_std = std, std if warm_std is None else warm_std, min_std
        self.momentum, self.hold, self.result = momentum, hold, result
        _check(self)

    def count(self, iteration: int) -> int:
        """Candidates of an iteration, counted from 0."""
        return self.candidates

    def fit(self, elites: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B,K,a] of elites [B,E,K,a], whose costs [B,E] begin with the lowest."""
        return elites.mean(1), elites.std(1)

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """Search. The trace holds the ``best`` cost of every iteration [I,B] and the kept ``elites`` [B,keep,H,A].

        Args:
            problem: what to minimise, and where
            warm: raw plans [B,H,A], or [B,W,H,A] whose first is the mean and whose others join the candidates
        """
        space = Knots(problem, self.hold)
        start = space.begin(warm)
        mean, extra = start[:, 0], start[:, 1:]
        std = torch.full_like(mean, self.std if warm is None else self.warm_std)
        best, best_cost, trace = mean, mean.new_full((len(mean),), torch.inf), []
        for iteration in range(self.first_iterations if warm is None else self.iterations):
            knots = draw(space, mean, std, extra, self.count(iteration), self.beta)
            elites, cost = cheapest(knots, space.cost(knots), self.elites)
            best, best_cost = better(best, best_cost, elites[:, 0], cost[:, 0])
            new_mean, new_std = self.fit(elites, cost)
            mean = _blend(mean, new_mean, self.momentum)
            std = _blend(std, new_std, self.momentum).clamp(self.min_std, self.max_std)
            extra = elites[:, : self.keep]
            trace.append(cost[:, 0])
        if self.result == "mean":
            best, best_cost = mean, space.cost(mean.unsqueeze(1))[:, 0]
        return Plan(space.raw(best), best_cost, {"best": torch.stack(trace), "elites": space.raw(extra)})


class ICEM(CEM):
    """Improved CEM (Pinneri et al. 2020): coloured noise, elites that live on, fewer candidates in every iteration.

    The best plan that was seen is returned. Its elites are in the plan's trace ``elites [B,keep,H,A]``; shifted and
    put behind the mean of the warm start, they are candidates of the next decision. Standard deviations are in units
    of the normalised actions.

    Args:
        candidates: plans that are compared in the first iteration; the first is the mean
        elites: how many of the best the next mean and standard deviation are fitted to
        iterations: with a warm start
        first_iterations: without one, at the first decision of an episode
        std: standard deviation of the first iteration
        warm_std: the same with a warm start; ``std`` by default
        min_std: the standard deviation never falls below
        momentum: share of the old mean and standard deviation that a refit keeps
        hold: environment steps for which an action is held
        beta: the power of the noise falls with frequency as f^-beta; 0 is white
        keep: how many elites are candidates of the next iteration, and of the next decision
        decay: factor by which the number of candidates falls in every iteration; never below twice the elites
        result: the ``best`` plan that was seen, or the ``mean`` of the last elites
    """

    def __init__(
        self,
        candidates: int = 128,
        elites: int = 16,
        iterations: int = 3,
        first_iterations: int = 8,
        std: float = 1.0,
        warm_std: float | None = None,
        min_std: float = 0.1,
        momentum: float = 0.1,
        hold: int = 1,
        beta: float = 2.0,
        keep: int = 5,
        decay: float = 1.25,
        result: Literal["mean", "best"] = "best",
    ) -> None:
        super().__init__(
            candidates, elites, iterations, first_iterations, std, warm_std, min_std, momentum, hold, result
        )
        self.beta, self.keep, self.decay = beta, keep, decay
        if not 0 <= keep <= elites or decay < 1 or beta < 0:
            raise InputError(
                f"ICEM wants 0 <= keep <= elites, decay >= 1 and beta >= 0, was given keep={keep} of {elites} elites, "
                f"decay={decay}, beta={beta}"
            )

    def count(self, iteration: int) -> int:
        """Candidates of an iteration, counted from 0."""
        floor = min(2 * self.elites, self.candidates)
        return max(int(self.candidates * self.decay**-iteration), floor)


def _check(planner: CEM) -> None:
    name = type(planner).__name__
    if not 2 <= planner.elites <= planner.candidates:
        raise InputError(
            f"{name} was given elites={planner.elites} of candidates={planner.candidates}; "
            "at least two elites, and no more than candidates, are needed to fit a Gaussian"
        )
    if min(planner.iterations, planner.first_iterations, planner.hold) < 1:
        raise InputError(
            f"{name} was given iterations={planner.iterations}, first_iterations={planner.first_iterations}, "
            f"hold={planner.hold}; each must be at least 1"
        )
    if not (min(planner.std, planner.warm_std) > 0 <= planner.min_std and 0 <= planner.momentum < 1):
        raise InputError(
            f"{name} was given std={planner.std}, warm_std={planner.warm_std}, min_std={planner.min_std}, "
            f"momentum={planner.momentum}; expected std > 0, min_std >= 0 and 0 <= momentum < 1"
        )
    if planner.result not in ("mean", "best"):
        raise InputError(f"{name} was given result={planner.result!r}; choose mean or best")
