"""The cross-entropy method for discrete actions: a categorical distribution over the choices of every step."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.planning.choices import Choices, check_menu
from jepa.planning.sampling import better, cheapest
from jepa.schema import Plan, Problem


class CategoricalCEM:
    """Cross-entropy method over choices: sample, keep the elites, count what they chose, repeat (Rubinstein 1999).

    Discrete environments are planned for as they are, continuous ones on a grid of their action space. The best plan
    that was seen is returned. All environments share the noise.

    Args:
        candidates: plans that are compared in every iteration; the first takes the likeliest choices
        elites: how many of the best the next probabilities are counted from
        iterations: with a warm start
        first_iterations: without one, at the first decision of an episode
        momentum: share of the old probabilities that a count keeps
        explore: share of a sample that is uniform over the choices, so that none dies out
        warm_explore: share of the first samples around a warm start that is uniform
        keep: how many elites are candidates of the next iteration, and of the next decision
        hold: environment steps for which a choice is held
        levels: values per dimension of the grid over a continuous action space
    """

    def __init__(
        self,
        candidates: int = 128,
        elites: int = 16,
        iterations: int = 3,
        first_iterations: int = 8,
        momentum: float = 0.1,
        explore: float = 0.05,
        warm_explore: float = 0.5,
        keep: int = 4,
        hold: int = 1,
        levels: int = 3,
    ) -> None:
        self.candidates, self.elites, self.keep = candidates, elites, keep
        self.iterations, self.first_iterations = iterations, first_iterations
        self.momentum, self.explore, self.warm_explore = momentum, explore, warm_explore
        self.hold, self.levels = hold, levels
        check_menu("CategoricalCEM", hold, levels)
        if not 1 <= elites <= candidates or not 0 <= keep <= elites or min(iterations, first_iterations) < 1:
            raise InputError(
                f"CategoricalCEM wants 0 <= keep <= elites <= candidates and iterations >= 1, was given keep={keep}, "
                f"elites={elites}, candidates={candidates}, iterations={iterations} and {first_iterations}"
            )
        if not (0 <= momentum < 1 and 0 <= explore <= 1 and 0 < warm_explore <= 1):
            raise InputError(
                f"CategoricalCEM was given momentum={momentum}, explore={explore}, warm_explore={warm_explore}; "
                "expected shares: 0 <= momentum < 1, 0 <= explore <= 1, 0 < warm_explore <= 1"
            )

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """Search. The trace holds the ``best`` cost of every iteration [I,B] and the kept ``elites`` [B,keep,H,A].

        Args:
            problem: what to minimise, and where
            warm: raw plans [B,H,A], or [B,W,H,A] whose first is the centre and whose others join the candidates
        """
        space = Choices(problem, self.hold, self.levels)
        start, share = space.begin(warm), torch.full((), 1 / space.choices, device=problem.device)
        shape = (problem.batch, space.count, space.choices)
        chance, extra = share.expand(shape), torch.zeros(problem.batch, 0, space.count, device=problem.device).long()
        if start is not None:
            chance = _mix(self._counts(start[:, :1], space), self.warm_explore)
            extra = start[:, 1:]
        best, best_cost, trace = chance.argmax(-1), chance.new_full((problem.batch,), torch.inf), []
        for _ in range(self.first_iterations if warm is None else self.iterations):
            plans = self._draw(space, chance, extra)
            elites, cost = cheapest(plans, space.cost(plans), self.elites)
            best, best_cost = better(best, best_cost, elites[:, 0], cost[:, 0])
            chance = self.momentum * chance + (1 - self.momentum) * self._counts(elites, space)
            extra = elites[:, : self.keep]
            trace.append(best_cost)
        return Plan(space.raw(best), best_cost, {"best": torch.stack(trace), "elites": space.raw(extra)})

    @staticmethod
    def _counts(plans: Tensor, space: Choices) -> Tensor:
        """[B,E,K] -> the share of each choice [B,K,n]."""
        every = torch.arange(space.choices, device=plans.device)
        return (plans.unsqueeze(-1) == every).float().mean(1)

    def _draw(self, space: Choices, chance: Tensor, extra: Tensor) -> Tensor:
        """[B,S,K]: the likeliest plan, the plans that are carried on, and new ones."""
        extra = extra[:, : self.candidates - 1]
        noise = space.uniform(1, self.candidates - 1 - extra.shape[1], space.count, 1)
        edges = _mix(chance, self.explore).cumsum(-1)[:, None, :, :-1]
        fresh = (noise >= edges).sum(-1)
        return torch.cat([chance.argmax(-1).unsqueeze(1), extra, fresh], dim=1)


def _mix(chance: Tensor, share: float) -> Tensor:
    """Probabilities [...,n] of which ``share`` is spread evenly."""
    return (1 - share) * chance + share / chance.shape[-1]
