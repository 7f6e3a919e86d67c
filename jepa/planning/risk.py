"""Costs over an ensemble of worlds: what its members disagree on, and how bad a plan may turn out.

They see one forecast per member, z [E,B,S,H,N,D], which worlds with ``rollouts`` give.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.planning.costs import REDUCTIONS, Cost, Reduce, over_time

Functional = Literal["mean", "cvar", "worst"]


def _want_members(z: Tensor, name: str) -> None:
    if z.ndim != 6:
        raise InputError(
            f"{name} was given forecasts of shape {tuple(z.shape)}; it wants those of an ensemble, [E,B,S,H,N,D]: "
            "plan with a world that has rollouts, such as jepa.models.ensemble.EnsembleWorld"
        )


def tail_mean(cost: Tensor, tail: float) -> Tensor:
    """Conditional value at risk: costs of E equally likely outcomes [E,...] -> the mean of the worst ``tail`` of them.

    Exact where tail * E is no whole number: the outcome at the edge counts in part (Rockafellar & Uryasev 2000).
    """
    share = (tail * len(cost) - torch.arange(len(cost), dtype=cost.dtype, device=cost.device)).clamp(0, 1)
    ranked = cost.sort(dim=0, descending=True).values
    # an infinite cost times a share of zero would be no number
    ranked = torch.where(share.reshape(-1, *[1] * (cost.ndim - 1)) > 0, ranked, torch.zeros_like(ranked))
    return torch.tensordot(share / share.sum(), ranked, dims=1)


class Risk(Cost):
    """A cost of an uncertain future: the cost for every member of the ensemble, then one number of them.

    Args:
        cost: what makes an imagined future good; seen for one member at a time
        functional: ``mean`` over the members, the mean of the worst ``tail`` of them (``cvar``), or the ``worst``
        tail: share of the members that ``cvar`` averages; 1 is the mean
    """

    members = True

    def __init__(self, cost: Cost, functional: Functional = "mean", tail: float = 0.4) -> None:
        check_choice("Risk.functional", functional, ("mean", "cvar", "worst"))
        if not 0 < tail <= 1:
            raise InputError(f"Risk.tail was given {tail}; expected a share 0 < tail <= 1")
        if cost.members:
            raise InputError(f"Risk was given {type(cost).__name__}, which is over all members itself; add it beside")
        self.cost, self.functional, self.tail = cost, functional, tail

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        _want_members(z, "Risk")
        each = torch.stack([self.cost(member, goal, action) for member in z])
        if self.functional == "worst":
            return each.amax(0)
        return tail_mean(each, 1.0 if self.functional == "mean" else self.tail)

    def to(self, device: torch.device | str) -> Cost:
        self.cost.to(device)
        return self


class Disagreement(Cost):
    """Variance of the forecasts over the members of an ensemble, averaged over tokens and dimensions.

    With a positive weight plans keep to what the data covered; with a negative one they explore.

    Args:
        reduce: ``sum`` over the steps of the plan, its ``last`` step, or ``discounted``
        discount: factor from one step to the next, for ``discounted``
        root: standard deviation instead of variance
    """

    members = True

    def __init__(self, reduce: Reduce = "sum", discount: float = 0.95, root: bool = False) -> None:
        check_choice("Disagreement.reduce", reduce, REDUCTIONS)
        self.reduce, self.discount, self.root = reduce, discount, root

    def __call__(self, z: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        _want_members(z, "Disagreement")
        if self.reduce == "last":
            z = z[:, :, :, -1:]
        spread = z.var(0, correction=0)
        # the slope of a root at zero is infinite, where all members agree
        spread = (spread + 1e-12).sqrt() if self.root else spread
        return over_time(spread.mean((-2, -1)), self.reduce, discount=self.discount)
