"""The contract of a term of the training loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from jepa.errors import InputError
from jepa.schema import Prediction, Specs


class Objective(nn.Module, ABC):
    """One term of the loss: ``loss = sum(o.weight_at(progress) * o(prediction))``.

    Under ``torch.distributed`` the gradient that DDP or FSDP averages over the processes equals the gradient of one
    process with the joint batch. Objectives that need statistics of the joint batch communicate in their forward
    and backward pass, so every process must call them.

    Args:
        weight: factor of this term in the loss, zero or more.
        ramp: two fractions of the training between which the factor grows linearly from zero to ``weight``; without
            it the factor is constant.
    """

    def __init__(self, weight: float = 1.0, ramp: tuple[float, float] | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"{name}(weight={weight}): expected a finite number of zero or more; change it")
        if ramp is not None and not (len(ramp) == 2 and 0 <= ramp[0] <= ramp[1] <= 1):
            raise InputError(
                f"{name}(ramp={ramp}): expected two rising fractions of the training; give e.g. [0.15, 0.5]"
            )
        self.weight = weight
        self.ramp = ramp

    #: whether the term is one of the whole batch, and not a mean over its samples: accumulated gradients of several
    #: batches are then not those of the large one
    joint = False

    def begin_step(self, step: int) -> None:
        """Told before every training batch: ``step`` optimiser steps are done. What is drawn anew at every step goes by
        it; the batches whose gradients are accumulated share their step."""

    def bind(self, specs: Specs, dim: int) -> None:
        """Build the parameters that depend on the action space and on the latent width D; most have none.

        Called once, before the optimiser is built and before a checkpoint is loaded.
        """

    def weight_at(self, progress: float) -> float:
        """The factor of this term when the fraction ``progress`` (0 to 1) of the training is done."""
        if self.ramp is None or progress >= self.ramp[1]:
            return self.weight
        start, end = self.ramp
        return self.weight * (progress - start) / (end - start) if progress > start else 0.0

    @abstractmethod
    def forward(self, prediction: Prediction) -> Tensor:
        """The term without its weight: a scalar."""

    def extra_repr(self) -> str:
        return f"weight={self.weight}" + ("" if self.ramp is None else f", ramp={tuple(self.ramp)}")
