"""Nevergrad's optimisers as a planner: a comparison that needs no tuning, not a fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.errors import InputError, check_known
from jepa.planning.knots import Knots
from jepa.schema import Plan, Problem

_FAR = 1e6  # standard deviations: as good as no bound


def _nevergrad() -> Any:
    try:
        import nevergrad
    except ImportError as error:
        raise InputError(
            f"the planner Nevergrad needs the package nevergrad ({error}); install it with "
            "pip install 'jepa-worlds[compare]', or take jepa.planning.CEM"
        ) from error
    return nevergrad


class Nevergrad:
    """Any optimiser of Nevergrad (Bennet et al. 2021), by ask and tell, for comparison with the planners of this room.

    Every environment has an optimiser of its own, all of one seed, so that their order is no matter. The candidates of
    an iteration are asked for on the host and scored together: two transfers per iteration, not one per decision.
    The best plan that was seen is returned.

    Args:
        optimizer: name in Nevergrad's registry, e.g. DiagonalCMA, CMA, DE, NGOpt. NGOpt chooses by the budget; where it
            chooses MetaModel, nevergrad 1.0.12 fails under the present numpy
        candidates: plans that are scored together; 1 for an optimizer that goes one by one, e.g. Powell
        iterations: with a warm start
        first_iterations: without one, at the first decision of an episode
        std: standard deviation of the first candidates, in units of the normalised actions
        hold: environment steps for which an action is held
    """

    def __init__(
        self,
        optimizer: str = "DiagonalCMA",
        candidates: int = 64,
        iterations: int = 4,
        first_iterations: int = 12,
        std: float = 1.0,
        hold: int = 1,
    ) -> None:
        self.optimizer, self.candidates, self.std, self.hold = optimizer, candidates, std, hold
        self.iterations, self.first_iterations = iterations, first_iterations
        if min(candidates, iterations, first_iterations, hold) < 1 or std <= 0:
            raise InputError(
                f"Nevergrad wants candidates, iterations, first_iterations and hold >= 1 and std > 0, was given "
                f"candidates={candidates}, iterations={iterations}, first_iterations={first_iterations}, hold={hold}, "
                f"std={std}"
            )
        registry = _nevergrad().optimizers.registry
        check_known("optimizer", [optimizer], registry)
        if candidates > 1 and registry[optimizer].no_parallelization:
            raise InputError(
                f"Nevergrad's {optimizer} goes one by one and was given candidates={candidates}; set candidates to 1, "
                "or take another optimizer, e.g. DiagonalCMA"
            )

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """Search. The trace holds the ``best`` cost of every iteration [I,B].

        Args:
            problem: what to minimise, and where
            warm: raw plans [B,H,A], or [B,W,H,A] whose first is where the search begins and all are suggested
        """
        space = Knots(problem, self.hold)
        start = space.begin(warm).cpu()
        iterations = self.first_iterations if warm is None else self.iterations
        seed = int(torch.randint(2**31, (), generator=problem.generator, device=problem.device))
        searches = [self._search(space, rows, seed, iterations) for rows in start]
        best, best_cost, trace = start[:, 0], torch.full((len(start),), torch.inf), []
        for _ in range(iterations):
            asked = [[search.ask() for _ in range(self.candidates)] for search in searches]
            knots = torch.from_numpy(np.array([[one.value for one in row] for row in asked], dtype=np.float32))
            cost = space.cost(space.clamp(knots.to(space.mean))).cpu()
            for search, row, costs in zip(searches, asked, cost):
                self._tell(search, row, costs)
            least, index = cost.min(1)
            chosen = knots[torch.arange(len(knots)), index]
            best = torch.where((least < best_cost)[:, None, None], chosen, best)
            best_cost = torch.minimum(best_cost, least)
            trace.append(best_cost)
        best = space.clamp(best.to(space.mean))
        return Plan(space.raw(best), best_cost.to(problem.device), {"best": torch.stack(trace)})

    def _search(self, space: Knots, starts: Tensor, seed: int, iterations: int) -> Any:
        """An optimiser whose first suggestions are the starts [W,K,a]."""
        package = _nevergrad()
        array = package.p.Array(init=starts[0].double().numpy()).set_mutation(sigma=self.std)
        low, high = (
            np.broadcast_to(bound.cpu().double().numpy(), starts[0].shape).copy() for bound in (space.low, space.high)
        )
        if np.isfinite(low).any() or np.isfinite(high).any():  # Nevergrad knows all bounds or none, and no infinity
            array.set_bounds(low.clip(-_FAR, _FAR), high.clip(-_FAR, _FAR), method="clipping")
        array.random_state.seed(seed)
        kind, budget = package.optimizers.registry[self.optimizer], iterations * self.candidates
        # told how many are asked for at once, since optimisers that go one by one would wait forever for an answer
        search = kind(array, budget=budget, num_workers=self.candidates)
        for start in starts[: self.candidates]:
            search.suggest(start.double().numpy())
        return search

    @staticmethod
    def _tell(search: Any, asked: list[Any], costs: Tensor) -> None:
        # what is no finite cost is told as worse than all others, since optimisers calculate with it
        finite = costs[costs.isfinite()]
        worst = float(finite.max()) + 1.0 if len(finite) else 0.0
        for candidate, cost in zip(asked, costs.nan_to_num(nan=worst, posinf=worst).tolist()):
            search.tell(candidate, cost)
