"""Costs of what a head reads from imagined latents: proprioception, reward and value, constraints.

A head is any module that maps latents of single frames z [n,1,N,D] to numbers [n,K]: a fitted probe is one, and so is
:class:`jepa.models.heads.Head`, which has a file format. It must be differentiable for planners that follow the
gradient. The goal is read by the same head as the forecasts, from the latent of the goal frame, never from the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.planning.costs import REDUCTIONS, Cost, GoalLatent, Reduce, over_time


def read(head: nn.Module, z: Tensor) -> Tensor:
    """What a head [n,1,N,D] -> [n,K] says of latents [...,N,D]: [...,K]."""
    values = head(z.reshape(-1, 1, *z.shape[-2:]))
    if values.ndim != 2 or len(values) != z[..., 0, 0].numel():
        raise InputError(
            f"a head made {tuple(values.shape)} of {z[..., 0, 0].numel()} frames; expected [n,K], one row per frame: "
            "use a head or a probe that reads single frames"
        )
    return values.reshape(*z.shape[:-2], -1)


def _scalar(head: nn.Module, z: Tensor, name: str) -> Tensor:
    """Latents [...,N,D] -> [...], for heads of one output."""
    values = read(head, z)
    if values.shape[-1] != 1:
        raise InputError(f"the {name} head reads {values.shape[-1]} numbers per frame; expected one, of a scalar")
    return values[..., 0]


def _quiet(head: nn.Module | None) -> nn.Module | None:
    return head.eval() if isinstance(head, nn.Module) else head


def _move(head: nn.Module | None, device: torch.device | str) -> None:
    if isinstance(head, nn.Module):
        head.to(device)


class Proprioception(Cost):
    """Distance between what a head reads from the forecasts and from the goal frame: proprioception, or any quantity.

    Models that keep proprioception in channels of their latents need no head: see the channels of ``GoalLatent``.

    Args:
        head: module from latents of single frames [n,1,N,D] to numbers [n,P], in units that make them comparable
        norm: ``l2`` is the mean squared difference, ``l1`` the mean absolute difference
        reduce: ``last`` scores the end of the plan, ``sum`` every step, ``discounted`` step t with discount^t
        last_weight: factor of the last step, when ``reduce`` looks at every step
        discount: factor from one step to the next, for ``discounted``
    """

    def __init__(
        self,
        head: nn.Module,
        norm: Literal["l2", "l1"] = "l2",
        reduce: Reduce = "last",
        last_weight: float = 1.0,
        discount: float = 0.95,
    ) -> None:
        if norm not in ("l2", "l1"):
            raise InputError(f"Proprioception.norm was given {norm!r}; expected one of l2, l1: choose one")
        self.head, self.distance = _quiet(head), GoalLatent(norm, reduce, last_weight, discount)

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        if self.distance.reduce == "last":
            z = z[:, :, -1:]
        goal = goal.reshape(len(goal), *goal.shape[-2:])
        return self.distance(read(self.head, z).unsqueeze(-2), read(self.head, goal).unsqueeze(-2), action)

    def to(self, device: torch.device | str) -> Cost:
        _move(self.head, device)
        return self


class Return(Cost):
    """What is not earned: minus the discounted rewards of the plan's steps and the value of its end.

    - sum_t discount^t reward(z_t+1) - discount^H value(z_H), for the steps t = 0 ... H-1, as TD-MPC plans.

    Args:
        reward: head of one number, the reward of arriving at a frame [n,1,N,D] -> [n,1]; none counts nothing
        value: head of one number, the discounted rewards that are still to come there; none counts nothing
        discount: factor from one model step to the next
    """

    def __init__(
        self, reward: nn.Module | None = None, value: nn.Module | None = None, discount: float = 0.99
    ) -> None:
        if reward is None and value is None:
            raise InputError("Return was given neither a reward nor a value head; give at least one of them")
        if not 0 < discount <= 1:
            raise InputError(f"Return.discount was given {discount}; expected 0 < discount <= 1")
        self.reward, self.value, self.discount = _quiet(reward), _quiet(value), discount

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        earned = z.new_zeros(z.shape[:2])
        if self.reward is not None:
            earned = earned + over_time(_scalar(self.reward, z, "reward"), "discounted", discount=self.discount)
        if self.value is not None:
            earned = earned + self.discount ** z.shape[2] * _scalar(self.value, z[:, :, -1], "value")
        return -earned

    def to(self, device: torch.device | str) -> Cost:
        _move(self.reward, device), _move(self.value, device)
        return self


class Constraint(Cost):
    """How far what a head reads from the forecasts lies outside of its limits: zero inside, linear (hinge) outside.

    Any function of latents is a head, so that with ``high`` 0 this is the hinge of a function that must not be
    positive. A weight well above the other costs makes it nearly hard.

    Args:
        head: module from latents of single frames [n,1,N,D] to numbers [n,K]; null limits the latents themselves
            (tokens averaged, K = D)
        low: one number for all K or one for each; null for no limit
        high: the same from above
        power: 1 is the hinge, 2 its square
        reduce: ``sum`` over the steps of the plan, its ``last`` step, or ``discounted``
    """

    def __init__(
        self,
        head: nn.Module | None = None,
        low: float | Sequence[float] | None = None,
        high: float | Sequence[float] | None = None,
        power: float = 1.0,
        reduce: Reduce = "sum",
    ) -> None:
        if low is None and high is None:
            raise InputError("Constraint was given neither low nor high; give at least one limit")
        if power < 1 or reduce not in REDUCTIONS:
            raise InputError(f"Constraint was given power={power}, reduce={reduce!r}; expected 1 or more, {REDUCTIONS}")
        self.head, self.power, self.reduce = _quiet(head), power, reduce
        self.low, self.high = low, high

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        values = z.mean(-2) if self.head is None else read(self.head, z)
        outside = torch.zeros_like(values)
        if self.low is not None:
            outside = outside + torch.relu(self._limit(self.low, values) - values)
        if self.high is not None:
            outside = outside + torch.relu(values - self._limit(self.high, values))
        return over_time(outside.pow(self.power).sum(-1), self.reduce)

    @staticmethod
    def _limit(limit: float | Sequence[float], values: Tensor) -> Tensor:
        limit = torch.as_tensor(limit, dtype=values.dtype, device=values.device)
        if limit.numel() not in (1, values.shape[-1]):
            raise InputError(f"Constraint has {limit.numel()} limits for {values.shape[-1]} numbers; give one for each")
        return limit

    def to(self, device: torch.device | str) -> Cost:
        _move(self.head, device)
        return self
