"""What makes an imagined future good or bad: costs over latents that add and scale.

``2.0 * GoalLatent() + 0.1 * ActionPenalty()`` is a cost again. In YAML the same sum is a :class:`WeightedSum`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError, check_choice


class Cost(ABC):
    """A cost of imagined latents. Lower is better."""

    @abstractmethod
    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        """Forecasts z [B,S,H,N,D], goals [B,N,D] or [B,1,N,D], normalised plans [B,S,H,A] -> costs [B,S]."""

    def __add__(self, other: Cost) -> Cost:
        return WeightedSum([self, other])

    def __mul__(self, weight: float) -> Cost:
        return WeightedSum([self], [weight])

    __rmul__ = __mul__


class WeightedSum(Cost):
    """Several costs, each times its weight.

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

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        terms = [weight * cost(z, goal, action) for cost, weight in zip(self.costs, self.weights)]
        return torch.stack(terms).sum(0)


class GoalLatent(Cost):
    """Distance of the forecasts to the latent of the goal, averaged over tokens.

    Args:
        norm: distance of two tokens: ``l2`` is the mean squared difference, ``l1`` the mean absolute difference,
            ``cosine`` one minus the cosine of the angle
        reduce: ``last`` scores the end of the plan, ``sum`` every step, ``discounted`` step t with discount^t
        last_weight: factor of the last step, when ``reduce`` looks at every step
        discount: factor from one step to the next, for ``discounted``
    """

    def __init__(
        self,
        norm: Literal["l2", "l1", "cosine"] = "l2",
        reduce: Literal["last", "sum", "discounted"] = "last",
        last_weight: float = 1.0,
        discount: float = 0.95,
    ) -> None:
        check_choice("GoalLatent.norm", norm, ("l2", "l1", "cosine"))
        check_choice("GoalLatent.reduce", reduce, ("last", "sum", "discounted"))
        self.norm, self.reduce = norm, reduce
        self.last_weight, self.discount = last_weight, discount

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        if self.reduce == "last":
            z = z[:, :, -1:]
        goal = goal.reshape(goal.shape[0], 1, 1, *goal.shape[-2:])
        distance = self._distance(z, goal).mean(-1)
        if self.reduce == "last":
            return distance[:, :, 0]
        return (distance * self._weights(distance)).sum(-1)

    def _distance(self, z: Tensor, goal: Tensor) -> Tensor:
        """[B,S,H,N,D] and [B,1,1,N,D] -> [B,S,H,N]"""
        if self.norm == "cosine":
            return 1 - F.cosine_similarity(z, goal, dim=-1)
        difference = z - goal
        return (difference.square() if self.norm == "l2" else difference.abs()).mean(-1)

    def _weights(self, distance: Tensor) -> Tensor:
        weights = torch.ones(distance.shape[-1], dtype=distance.dtype, device=distance.device)
        if self.reduce == "discounted":
            weights = self.discount ** torch.arange(len(weights), device=distance.device, dtype=distance.dtype)
        weights[-1] *= self.last_weight
        return weights


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
