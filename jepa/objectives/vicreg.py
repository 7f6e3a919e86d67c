"""Variance, covariance and temporal similarity: VICReg (Bardes et al. 2022) for sequences (PLDM, EB-JEPA).

Variance and covariance are those of the joint batch of all processes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.objectives.base import Objective
from jepa.objectives.samples import OVER, Over, centred, grouped, joint_sum
from jepa.schema import Prediction

EPSILON = 1e-4  # inside the square root: VICReg's, keeps the gradient finite at zero spread


class Variance(Objective):
    """Hinge on the standard deviation of each latent dimension: mean of max(0, margin - sqrt(var + 1e-4)).

    ``over="batch"`` measures the spread over all B*T*N vectors (EB-JEPA), ``"step"`` over the B*N vectors of each
    time step (PLDM's std), ``"time"`` over the T steps of each token of each trajectory (PLDM's std_t). Where every
    trajectory has its own background, the first two can be satisfied by the background alone; ``"time"`` cannot.
    ``"clip"`` measures the spread of the B means over a clip's tokens: masked models, whose tokens each have a place of
    their own, can satisfy the first two by the places alone, and have a single step.

    Args:
        margin: standard deviation from which a dimension costs nothing.
        over: what the spread is measured over: "batch", "step", "time" or "clip".
        weight: factor of this term in the loss.
        ramp: fractions of the training between which the factor grows from zero to ``weight``.
    """

    def __init__(
        self,
        margin: float = 1.0,
        over: Over = "batch",
        weight: float = 1.0,
        ramp: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, ramp)
        self.margin = margin
        self.over = check_choice("Variance.over", over, OVER)

    @property
    def joint(self) -> bool:
        return self.over != "time"

    def forward(self, prediction: Prediction) -> Tensor:
        x, freedom = centred(grouped(prediction.z, self.over), self.over)
        variance = joint_sum(x.square().sum(1), self.over) / freedom
        return torch.relu(self.margin - (variance + EPSILON).sqrt()).mean()

    def extra_repr(self) -> str:
        return f"margin={self.margin}, over={self.over}, {super().extra_repr()}"


class Covariance(Objective):
    """Sum of the squared off-diagonal covariances of the latent dimensions, normalised.

    Two normalisations are published and differ by D - 1, so weights do not carry over from one to the other.

    Args:
        per: "dim" divides the sum by D (VICReg), "pair" by D * (D - 1) (PLDM, EB-JEPA).
        over: what counts as a sample: "batch" all B*T*N vectors, "step" the B*N vectors of each time step, averaged
            over the steps, "clip" the B means over a clip's tokens (see :class:`Variance`).
        weight: factor of this term in the loss.
        ramp: fractions of the training between which the factor grows from zero to ``weight``.
    """

    joint = True

    def __init__(
        self,
        per: Literal["dim", "pair"] = "dim",
        over: Literal["batch", "step", "clip"] = "batch",
        weight: float = 1.0,
        ramp: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, ramp)
        self.per = check_choice("Covariance.per", per, ("dim", "pair"))
        self.over = check_choice("Covariance.over", over, ("batch", "step", "clip"))

    def forward(self, prediction: Prediction) -> Tensor:
        with torch.autocast(prediction.z.device.type, enabled=False):  # a half-precision product loses the digits
            x, freedom = centred(grouped(prediction.z, self.over), self.over)
            covariance = joint_sum(x.mT @ x, self.over) / freedom  # [G,D,D]
        dim = covariance.shape[-1]
        off_diagonal = covariance.square().sum((-2, -1)) - covariance.diagonal(dim1=-2, dim2=-1).square().sum(-1)
        return off_diagonal.mean() / (dim if self.per == "dim" else max(dim * (dim - 1), 1))

    def extra_repr(self) -> str:
        return f"per={self.per}, over={self.over}, {super().extra_repr()}"


class TemporalSimilarity(Objective):
    """Mean squared difference of consecutive latents: a smooth geometry, which planning needs.

    It pays for forgetting what moves; where backgrounds differ between trajectories, give it a ``ramp`` so that the
    other terms settle first.

    Args:
        weight: factor of this term in the loss.
        ramp: fractions of the training between which the factor grows from zero to ``weight``.
    """

    def __init__(self, weight: float = 1.0, ramp: tuple[float, float] | None = None) -> None:
        super().__init__(weight, ramp)

    def forward(self, prediction: Prediction) -> Tensor:
        z = prediction.z
        if z.shape[1] < 2:
            raise InputError("TemporalSimilarity was given windows of 1 step; expected at least 2: lengthen them")
        return z.float().diff(dim=1).square().mean()
