"""Model-predictive path integral control (MPPI): every candidate has a say, the cheaper the louder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa.errors import InputError
from jepa.planning.sampling import CEM


def path_weights(cost: Tensor, temperature: float) -> Tensor:
    """Costs [B,S], the lowest first -> weights softmax(-(c - c_min) / temperature) [B,S].

    A candidate of infinite cost has no weight, unless all are infinite.
    """
    gap = (cost - cost[:, :1]).nan_to_num(nan=0.0, posinf=torch.inf)
    return torch.softmax(-gap / temperature, dim=1)


class MPPI(CEM):
    """Model-predictive path integral control (Williams et al. 2017): the next mean is a soft average of candidates.

    Candidate i weighs w_i = softmax(-(c_i - c_min) / temperature); the mean becomes sum w_i a_i, the standard deviation
    that of the same weights, as in TD-MPC. ``min_std`` = ``max_std`` = ``std`` keeps it fixed, as in the original.

    The temperature is in units of the cost: hot is the plain average, cold the best candidate alone. Two meanings are
    published. PLDM and stable-worldmodel divide by it, as here; TD-MPC2, JEPA-WM and EB-JEPA multiply by it, so
    theirs is one over this one, and a small number taken from the wrong kind gives nearly uniform weights. A cost
    that is scaled wants a temperature that is scaled likewise.

    Standard deviations are in units of the normalised actions.

    Args:
        candidates: plans that are compared in every iteration; the first is the mean
        elites: how many of the best have a weight; all by default
        temperature: difference of cost at which a candidate weighs 1/e of the best
        iterations: with a warm start
        first_iterations: without one, at the first decision of an episode
        std: standard deviation of the first iteration
        warm_std: the same with a warm start; ``std`` by default
        min_std: the standard deviation never falls below
        max_std: the standard deviation of a refit never rises above
        momentum: share of the old mean and standard deviation that a refit keeps
        hold: environment steps for which an action is held
        beta: the power of the noise falls with frequency as f^-beta; 0 is white
        result: the weighted ``mean``, or the ``best`` plan that was seen
    """

    def __init__(
        self,
        candidates: int = 128,
        elites: int | None = None,
        temperature: float = 0.1,
        iterations: int = 3,
        first_iterations: int = 8,
        std: float = 1.0,
        warm_std: float | None = None,
        min_std: float = 0.1,
        max_std: float = 2.0,
        momentum: float = 0.0,
        hold: int = 1,
        beta: float = 0.0,
        result: Literal["mean", "best"] = "mean",
    ) -> None:
        elites = candidates if elites is None else elites
        super().__init__(
            candidates, elites, iterations, first_iterations, std, warm_std, min_std, momentum, hold, result
        )
        self.temperature, self.max_std, self.beta = temperature, max_std, beta
        if temperature <= 0 or max_std < min_std or beta < 0:
            raise InputError(
                f"MPPI wants temperature > 0, min_std <= max_std and beta >= 0, was given temperature={temperature}, "
                f"min_std={min_std}, max_std={max_std}, beta={beta}"
            )

    def fit(self, elites: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation [B,K,a] of elites [B,E,K,a] with costs [B,E], the lowest first."""
        weight = path_weights(cost, self.temperature)[:, :, None, None]
        mean = (weight * elites).sum(1)
        return mean, (weight * (elites - mean.unsqueeze(1)).square()).sum(1).sqrt()
