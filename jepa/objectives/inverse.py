"""Inverse dynamics: two consecutive latents must tell which action led from one to the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.objectives.base import Objective
from jepa.schema import Prediction, Specs


class InverseDynamics(Objective):
    """Mean squared error of the normalised action that an MLP reads off (z[t], z[t+1]); PLDM, EB-JEPA.

    Tokens are averaged first. The error of always answering the mean action is one per dimension, so a value near
    one says that the latents have forgotten what the actions move.

    Args:
        hidden: width of the two hidden layers.
        weight: factor of this term in the loss.
        ramp: fractions of the training between which the factor grows from zero to ``weight``.
    """

    def __init__(self, hidden: int = 256, weight: float = 1.0, ramp: tuple[float, float] | None = None) -> None:
        super().__init__(weight, ramp)
        self.hidden = hidden
        self.head: nn.Module | None = None

    def bind(self, specs: Specs, dim: int) -> None:
        """Build the MLP for latents of width ``dim`` and actions of ``specs.action.width``."""
        assert self.head is None, "InverseDynamics is bound once"
        self.head = nn.Sequential(
            nn.Linear(2 * dim, self.hidden),
            nn.GELU(),
            nn.Linear(self.hidden, self.hidden),
            nn.GELU(),
            nn.Linear(self.hidden, specs.action.width),
        )

    def forward(self, prediction: Prediction) -> Tensor:
        assert self.head is not None, "call InverseDynamics.bind(specs, dim) before the first forward"
        z = prediction.z.mean(dim=2)
        action = self.head(torch.cat((z[:, :-1], z[:, 1:]), dim=-1))
        assert action.shape == prediction.action.shape, f"{tuple(action.shape)} vs {tuple(prediction.action.shape)}"
        return (action.float() - prediction.action.float()).square().mean()

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, {super().extra_repr()}"
