"""The planner that follows the gradient of the cost through the world model, from many starts at once."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.planning.knots import Knots
from jepa.planning.sampling import better, draw, winner
from jepa.schema import Plan, Problem

_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-8  # of Kingma & Ba


class Adam:
    """The update of Kingma & Ba (2015), written out: an optimiser object would read its step count on the host."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.steps = 0

    def step(self, gradient: Tensor, lr: float) -> Tensor:
        """What is to be subtracted."""
        self.steps += 1
        self.first = _DECAY * self.first + (1 - _DECAY) * gradient
        self.second = _SQUARE_DECAY * self.second + (1 - _SQUARE_DECAY) * gradient.square()
        size = (self.second / (1 - _SQUARE_DECAY**self.steps)).sqrt() + _EPSILON
        return lr / (1 - _DECAY**self.steps) * self.first / size


def cosine(lr: float, steps: int) -> list[float]:
    """Step sizes that fall from ``lr`` to zero."""
    return [lr * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


class Descends(Protocol):
    """What a planner that descends says of its starts."""

    candidates: int
    std: float
    warm_std: float
    beta: float


def starts(planner: Descends, space: Knots, warm: Tensor | None) -> Tensor:
    """Where a descent begins, [B,S,K,a]: the warm start or the mean action, what joins it, and plans around it."""
    begin = space.begin(warm)
    std = torch.full_like(begin[:, 0], planner.std if warm is None else planner.warm_std)
    return draw(space, begin[:, 0], std, begin[:, 1:], planner.candidates, planner.beta)


class GradientPlanner:
    """Projected Adam (Kingma & Ba 2015) on normalised actions, from many starts; the best plan that was seen wins.

    One published planner builds an Adam and never steps it, so that its comparison of Adam with plain gradient descent
    is one of plain gradient descent with itself.

    The first start is the warm start or the mean action, the others are drawn around it. The cost must be
    differentiable. Its graph holds all candidates at once, whatever the ``chunk`` of the policy.

    Args:
        candidates: starts that descend side by side
        iterations: gradient steps with a warm start
        first_iterations: without one, at the first decision of an episode
        lr: size of the first step, in units of the normalised actions; falls to zero along a cosine, because steps of
            Adam do not shrink by themselves
        std: standard deviation of the starts, in the same units
        warm_std: the same with a warm start; ``std`` by default
        beta: the power of the starts falls with frequency as f^-beta; 0 is white
        hold: environment steps for which an action is held
    """

    def __init__(
        self,
        candidates: int = 16,
        iterations: int = 10,
        first_iterations: int = 30,
        lr: float = 0.2,
        std: float = 1.0,
        warm_std: float | None = None,
        beta: float = 0.0,
        hold: int = 1,
    ) -> None:
        self.candidates, self.iterations, self.first_iterations = candidates, iterations, first_iterations
        self.lr, self.std, self.warm_std = lr, std, std if warm_std is None else warm_std
        self.beta, self.hold = beta, hold
        if min(candidates, iterations, first_iterations, hold) < 1:
            raise InputError(
                f"GradientPlanner was given candidates={candidates}, iterations={iterations}, "
                f"first_iterations={first_iterations}, hold={hold}; each must be at least 1"
            )
        if min(lr, self.std, self.warm_std) <= 0 or beta < 0:
            raise InputError(
                f"GradientPlanner wants lr > 0, std > 0, warm_std > 0 and beta >= 0, was given lr={lr}, std={std}, "
                f"warm_std={warm_std}, beta={beta}"
            )

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """Descend. The trace holds the ``best`` cost of every iteration and of the end [I+1,B].

        Args:
            problem: what to minimise, and where
            warm: raw plans [B,H,A], or [B,W,H,A] whose first is the centre of the starts and whose others join them
        """
        space = Knots(problem, self.hold)
        knots = starts(self, space, warm)
        best, best_cost, trace = knots[:, 0], knots.new_full((len(knots),), torch.inf), []
        adam = Adam(knots)
        for lr in cosine(self.lr, self.first_iterations if warm is None else self.iterations):
            cost, gradient = space.slope(knots)
            best, best_cost = better(best, best_cost, *winner(knots, cost))
            trace.append(best_cost)
            knots = space.clamp(knots - adam.step(gradient, lr))
        best, best_cost = better(best, best_cost, *winner(knots, space.cost(knots)))
        return Plan(space.raw(best), best_cost, {"best": torch.stack([*trace, best_cost])})
