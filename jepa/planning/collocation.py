"""The planner that imagines states and actions side by side: collocation with virtual states."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.planning.gradient import Adam, cosine, starts
from jepa.planning.knots import Knots
from jepa.planning.sampling import better, winner
from jepa.schema import Dynamics, Plan, Problem


class Collocation:
    """Gradient descent on actions and on virtual states between them (GRASP, arXiv:2602.00475).

    The states s_1 ... s_H of a plan are variables beside its actions. Every iteration asks for all one-step forecasts
    F(s_h, a_h) at once, in parallel over the horizon, and descends

        score(F(s_0, a_0) ... F(s_H-1, a_H-1)) + consistency * sum_h mean |s_h+1 - F(s_h, a_h)|^2.

    The forecasts take their states without a gradient: directions in which a network's input state would lower the
    loss are no dynamics. So the score and the consistency move an action by its own step alone, and a state moves
    towards what leads to it, with Langevin noise that falls to zero. Every ``sync_every`` iterations the plan follows
    the true cost for ``sync_steps`` steps of Adam through the whole rollout, and the states begin again from there; the
    last iterations are such steps too. The best plan that was seen, by its true cost, is returned.

    The problem must have ``dynamics``, and its cost must be differentiable. The graph holds all candidates at once.

    Args:
        candidates: plans that descend side by side; the first is the warm start or the mean action
        iterations: with a warm start, without the steps of synchronisation
        first_iterations: without one, at the first decision of an episode
        lr: size of the first step of the actions, in units of the normalised actions; falls to zero along a cosine
        state_rate: share of the way to its forecast that a virtual state goes in an iteration
        consistency: weight of the distance between states and forecasts, for the actions
        noise: standard deviation of the states' noise in the first iteration, in units of the states' own over
            the plans
        sync_every: iterations between synchronisations
        sync_steps: steps of the whole rollout in each of them, and four times as many at the end
        std: standard deviation of the first plans, in units of the normalised actions
        warm_std: the same with a warm start; ``std`` by default
        beta: the power of the first plans' noise falls with frequency as f^-beta; 0 is white
        hold: environment steps for which an action is held
    """

    def __init__(
        self,
        candidates: int = 16,
        iterations: int = 15,
        first_iterations: int = 45,
        lr: float = 0.2,
        state_rate: float = 0.5,
        consistency: float = 1.0,
        noise: float = 0.1,
        sync_every: int = 15,
        sync_steps: int = 3,
        std: float = 1.0,
        warm_std: float | None = None,
        beta: float = 0.0,
        hold: int = 1,
    ) -> None:
        self.candidates, self.iterations, self.first_iterations = candidates, iterations, first_iterations
        self.lr, self.state_rate, self.consistency, self.noise = lr, state_rate, consistency, noise
        self.sync_every, self.sync_steps = sync_every, sync_steps
        self.std, self.warm_std, self.beta, self.hold = std, std if warm_std is None else warm_std, beta, hold
        if min(candidates, iterations, first_iterations, sync_every, sync_steps, hold) < 1:
            raise InputError(
                f"Collocation was given candidates={candidates}, iterations={iterations}, first_iterations="
                f"{first_iterations}, sync_every={sync_every}, sync_steps={sync_steps}, hold={hold}; each must be at "
                "least 1"
            )
        if min(lr, self.std, self.warm_std) <= 0 or not 0 < state_rate <= 1 or min(consistency, noise, beta) < 0:
            raise InputError(
                f"Collocation wants lr and std > 0, 0 < state_rate <= 1, and consistency, noise and beta >= 0, was "
                f"given lr={lr}, std={std}, warm_std={warm_std}, state_rate={state_rate}, consistency={consistency}, "
                f"noise={noise}, beta={beta}"
            )

    def plan(self, problem: Problem, warm: Tensor | None = None) -> Plan:
        """Descend. The trace holds the ``best`` true cost after every synchronisation [I,B] and the mean squared
        ``gap`` between states and forecasts of every iteration [I,B], over the plans that have one.

        Args:
            problem: what to minimise, and where; its dynamics
            warm: raw plans [B,H,A], or [B,W,H,A] whose first is the centre of the starts and whose others join them
        """
        if problem.dynamics is None:
            raise InputError(
                "Collocation needs one-step forecasts (Problem.dynamics); use a world that has `predict` and a cost "
                "without risk and disagreement, or jepa.planning.GradientPlanner"
            )
        return _Descent(self, problem, warm).run(self.first_iterations if warm is None else self.iterations)


class _Descent:
    """The variables of one plan."""

    def __init__(self, planner: Collocation, problem: Problem, warm: Tensor | None) -> None:
        self.planner, self.problem, self.space = planner, problem, Knots(problem, planner.hold)
        self.knots = starts(planner, self.space, warm)
        self.best, self.best_cost = self.knots[:, 0], self.knots.new_full((len(self.knots),), torch.inf)
        assert problem.dynamics is not None
        self.dynamics: Dynamics = problem.dynamics

    def run(self, iterations: int) -> Plan:
        planner, gaps, trace = self.planner, [], []
        self._sync(0)
        adam = Adam(self.knots)
        for number, lr in enumerate(cosine(planner.lr, iterations)):
            if number and number % planner.sync_every == 0:
                self._sync(planner.sync_steps, lr)
                trace.append(self.best_cost)
                adam = Adam(self.knots)
            gaps.append(self._iterate(adam, lr))
        self._sync(4 * planner.sync_steps, planner.lr)
        return Plan(
            self.space.raw(self.best),
            self.best_cost,
            {"best": torch.stack([*trace, self.best_cost]), "gap": torch.stack(gaps)},
        )

    def _iterate(self, adam: Adam, lr: float) -> Tensor:
        """One step of actions and states; the gap [B] between states and forecasts."""
        found: list[Tensor] = []

        def loss(action: Tensor) -> Tensor:
            forecast = self.dynamics.forecast(self.states, action)
            gap = (self.states - forecast).square().mean((-2, -1)).sum(-1)
            found.extend((forecast.detach(), gap.detach()))
            return self.dynamics.score(forecast, action) + self.planner.consistency * gap

        _, gradient = self.space.slope(self.knots, loss)
        self.knots = self.space.clamp(self.knots - adam.step(gradient, lr))
        forecast, gap = found
        noise = self._noise() * (lr / self.planner.lr)
        with torch.inference_mode(False):
            self.states = self.states + self.planner.state_rate * (forecast - self.states) + noise
        return gap.nanmean(1)

    def _noise(self) -> Tensor:
        """Noise of the states [1,S,H,N,D] times their spread [B,1,H,N,D]: one draw for all environments."""
        shape = (1, *self.states.shape[1:])
        white = torch.randn(shape, generator=self.problem.generator, device=self.problem.device)
        return self.planner.noise * white * self.spread

    def _sync(self, steps: int, lr: float = 0.0) -> None:
        """Some steps along the true cost; then the states are those of the rollout."""
        adam = Adam(self.knots)
        for rate in cosine(lr, steps):
            cost, gradient = self.space.slope(self.knots)
            self._judge(cost)
            self.knots = self.space.clamp(self.knots - adam.step(gradient, rate))
        self._judge(self.space.cost(self.knots))
        with torch.inference_mode(False), torch.no_grad():
            self.states = self.dynamics.rollout(self.space.raw(self.knots)).detach()
            self.spread = _spread(self.states)

    def _judge(self, cost: Tensor) -> None:
        self.best, self.best_cost = better(self.best, self.best_cost, *winner(self.knots, cost))


def _spread(states: Tensor) -> Tensor:
    """Standard deviation over the plans of states [B,S,H,N,D]: [B,1,H,N,D].

    Over those that are finite, and zero where none is: one plan that diverged must not spoil the noise of the others.
    """
    known = torch.where(states.isfinite(), states, torch.nan)
    centre = known.nanmean(1, keepdim=True)
    return (known - centre).square().nanmean(1, keepdim=True).sqrt().nan_to_num(0.0)
