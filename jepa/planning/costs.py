"""What makes an imagined future good or bad: costs over latents that add and scale.

``2.0 * GoalLatent() + 0.1 * ActionPenalty()`` is a cost again. In YAML the same sum is a :class:`WeightedSum`.
Costs that read something from the latents are in :mod:`jepa.planning.readings`, those over an ensemble of worlds in
:mod:`jepa.planning.risk`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError, check_choice

Reduce = Literal["last", "sum", "discounted"]
REDUCTIONS = ("last", "sum", "discounted")


def over_time(values: Tensor, reduce: Reduce, last_weight: float = 1.0, discount: float = 0.95) -> Tensor:
    """Values of the steps [...,H] -> [...]: the last, or their sum, where step t may count discount^t."""
    if reduce == "last":
        return values[..., -1]
    weights = torch.ones(values.shape[-1], dtype=values.dtype, device=values.device)
    if reduce == "discounted":
        weights = discount ** torch.arange(len(weights), device=values.device, dtype=values.dtype)
    weights[-1] *= last_weight
    return (values * weights).sum(-1)


class Cost(ABC):
    """A cost of imagined latents. Lower is better.

    Where ``members`` is true, the forecasts have an axis in front for the members of an ensemble, [E,B,S,H,N,D]; only
    a world with ``rollouts`` can serve such a cost.
    """

    members: bool = False

    @abstractmethod
    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        """Forecasts z [B,S,H,N,D], goals [B,N,D] or [B,1,N,D], normalised plans [B,S,H,A] -> costs [B,S]."""

    def to(self, device: torch.device | str) -> Cost:
        """Move what the cost reads with, in place."""
        return self

    def __add__(self, other: Cost) -> Cost:
        return WeightedSum([self, other])

    def __mul__(self, weight: float) -> Cost:
        return WeightedSum([self], [weight])

    __rmul__ = __mul__


class WeightedSum(Cost):
    """Several costs, each times its weight.

    Beside a cost over the members of an ensemble, the other terms are averaged over the members.

    Args:
        costs: the terms
        weights: one number per term; all one by default
    """

    def __init__(self, costs: list[Cost], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(costs) if weights is None else list(weights)
        if not costs or len(weights) != len(costs):
            raise InputError(
                f"WeightedSum was given {len(costs)} costs and {len(weights)} weights; give at least one cost and one "
                "weight for each"
            )
        self.costs, self.weights = list(costs), weights
        self.members = any(cost.members for cost in self.costs)

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        terms = [weight * self._term(cost, z, goal, action) for cost, weight in zip(self.costs, self.weights)]
        return torch.stack(terms).sum(0)

    def _term(self, cost: Cost, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        if cost.members or not self.members:
            return cost(z, goal, action)
        return torch.stack([cost(member, goal, action) for member in z]).mean(0)

    def to(self, device: torch.device | str) -> Cost:
        for cost in self.costs:
            cost.to(device)
        return self


class GoalLatent(Cost):
    """Distance of the forecasts to the latent of the goal, averaged over tokens.

    Args:
        norm: distance of two tokens: ``l2`` is the mean squared difference, ``l1`` the mean absolute difference,
            ``cosine`` one minus the cosine of the angle
        reduce: ``last`` scores the end of the plan, ``sum`` every step, ``discounted`` step t with discount^t
        last_weight: factor of the last step, when ``reduce`` looks at every step
        discount: factor from one step to the next, for ``discounted``
        channels: (first, end) of the D channels that count, without the end; all by default. Where a model joins an
            embedding of proprioception to the features, as DINO-WM does, two costs weigh the two parts
    """

    def __init__(
        self,
        norm: Literal["l2", "l1", "cosine"] = "l2",
        reduce: Reduce = "last",
        last_weight: float = 1.0,
        discount: float = 0.95,
        channels: tuple[int, int] | None = None,
    ) -> None:
        check_choice("GoalLatent.norm", norm, ("l2", "l1", "cosine"))
        check_choice("GoalLatent.reduce", reduce, REDUCTIONS)
        if channels is not None and not 0 <= channels[0] < channels[1]:
            raise InputError(f"GoalLatent.channels was given {channels}; expected two numbers 0 <= first < end")
        self.norm, self.reduce = norm, reduce
        self.last_weight, self.discount = last_weight, discount
        self.channels = None if channels is None else tuple(channels)

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        if self.reduce == "last":
            z = z[:, :, -1:]
        goal = goal.reshape(goal.shape[0], 1, 1, *goal.shape[-2:])
        distance = self._distance(self._part(z), self._part(goal)).mean(-1)
        return over_time(distance, self.reduce, self.last_weight, self.discount)

    def _part(self, z: Tensor) -> Tensor:
        if self.channels is None:
            return z
        if self.channels[1] > z.shape[-1]:
            raise InputError(f"GoalLatent.channels ends at {self.channels[1]}, but latents have {z.shape[-1]} channels")
        return z[..., slice(*self.channels)]

    def _distance(self, z: Tensor, goal: Tensor) -> Tensor:
        """[B,S,H,N,D] and [B,1,1,N,D] -> [B,S,H,N]"""
        if self.norm == "cosine":
            return 1 - F.cosine_similarity(z, goal, dim=-1)
        difference = z - goal
        return (difference.square() if self.norm == "l2" else difference.abs()).mean(-1)


class ActionPenalty(Cost):
    """Mean square of the normalised actions: prefers small deviations from the mean action of the training data.

    Args:
        smooth: penalise the change from one model step to the next instead of the size
    """

    def __init__(self, smooth: bool = False) -> None:
        self.smooth = smooth

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        if not self.smooth:
            return action.square().mean((-2, -1))
        if action.shape[-2] < 2:
            return action.new_zeros(action.shape[:2])
        return action.diff(dim=-2).square().mean((-2, -1))
