"""Distance between what was forecast and what the target encoder saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.objectives.base import Objective
from jepa.schema import Prediction


def _elementwise(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda p, h: loss(p, h, reduction="none").mean(-1)


# [B,K,N,D] and [B,K,N,D] -> [B,K,N]
NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": _elementwise(F.mse_loss),
    "l1": _elementwise(F.l1_loss),
    "smooth_l1": _elementwise(F.smooth_l1_loss),
    "cosine": lambda p, h: 1 - F.cosine_similarity(p, h, dim=-1),
}


_REMEDY = {"forced": "set its forced=true", "rollout": "set its rollout_steps to 1 or more"}


class Regression(Objective):
    """Mean distance between forecasts and target latents.

    ``forced`` compares the teacher-forced p [B,T-1,N,D] with h[:, 1:]; ``rollout`` compares the open-loop rollout
    [B,K,N,D] with the last K steps of h. Whether gradients reach h is the target's decision, not this objective's.
    Where the prediction has weights [B,T-1,N] of the forced forecasts, these are a weighted mean.

    Args:
        norm: "l2" (mean squared error), "l1" (V-JEPA), "smooth_l1" (beta 1, I-JEPA) or "cosine" (one minus it).
        source: "forced" or "rollout", the forecast that is scored.
        decay: step k of a rollout counts decay**k; the factors are normalised to a weighted mean.
        weight: factor of this term in the loss.
        ramp: fractions of the training between which the factor grows from zero to ``weight``.
    """

    def __init__(
        self,
        norm: Literal["l2", "l1", "smooth_l1", "cosine"] = "l2",
        source: Literal["forced", "rollout"] = "forced",
        decay: float = 1.0,
        weight: float = 1.0,
        ramp: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, ramp)
        self.norm = check_choice("Regression.norm", norm, NORMS)
        self.source = check_choice("Regression.source", source, ("forced", "rollout"))
        if decay <= 0 or (source == "forced" and decay != 1):
            raise InputError(f"Regression(decay={decay}): expected a factor above 0, and 1 unless source is rollout")
        self.decay = decay

    def forward(self, prediction: Prediction) -> Tensor:
        p = prediction.p if self.source == "forced" else prediction.rollout
        if p is None:
            raise InputError(
                f"Regression(source={self.source!r}) was given no {self.source} forecast; expected one from the "
                f"world model: {_REMEDY[self.source]}"
            )
        h = prediction.h[:, -p.shape[1] :]
        assert p.shape == h.shape, f"forecast {tuple(p.shape)} against target {tuple(h.shape)}"
        distance = NORMS[self.norm](p.float(), h.float())
        if self.source == "forced" and prediction.weight is not None:
            distance = distance * prediction.weight
        per_step = distance.mean(dim=(0, 2))
        factor = self.decay ** torch.arange(len(per_step), device=per_step.device, dtype=per_step.dtype)
        return (per_step * factor).sum() / factor.sum()

    def extra_repr(self) -> str:
        return f"norm={self.norm}, source={self.source}, decay={self.decay}, {super().extra_repr()}"
