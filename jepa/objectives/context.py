"""The dense loss of V-JEPA 2.1: the predictor also answers for what the encoder saw."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.objectives.base import Objective
from jepa.objectives.prediction import NORMS
from jepa.schema import Prediction


class ContextRegression(Objective):
    """Mean distance between the forecasts at the visible tokens and the target's latents there (V-JEPA 2.1).

    Without it no term asks the latents of visible tokens to stand for what is at their own place. A token's distance
    is divided by sqrt(d), with d how far the nearest hidden token is (Euclidean, in tokens over t, row and column);
    the factors are not normalised to mean one, as published. Where the prediction has weights of the context (packed
    masks), these are a weighted mean.

    Published: weight 0.5 on video; zero until step 15,000 of 135,000, then linear to its weight at step 30,000, which
    is ``ramp=(0.111, 0.222)``; in the cooldown without ramp and without ``by_distance``.

    Args:
        norm: "l1" (published), "l2" (mean squared error), "smooth_l1" (beta 1) or "cosine" (one minus it).
        by_distance: whether tokens count less, the farther they are from what is hidden.
        weight: factor of this term in the loss.
        ramp: fractions of the training between which the factor grows from zero to ``weight``.
    """

    def __init__(
        self,
        norm: Literal["l2", "l1", "smooth_l1", "cosine"] = "l1",
        by_distance: bool = True,
        weight: float = 0.5,
        ramp: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, ramp)
        self.norm = check_choice("ContextRegression.norm", norm, NORMS)
        self.by_distance = by_distance

    def forward(self, prediction: Prediction) -> Tensor:
        p, h, distance = prediction.context, prediction.context_h, prediction.distance
        if p is None or h is None or (self.by_distance and distance is None):
            raise InputError(
                "ContextRegression was given no forecast of the context; expected one from a masked model: set "
                "context=true in its predictor"
            )
        assert p.shape == h.shape, f"forecast {tuple(p.shape)} against target {tuple(h.shape)}"
        per_token = NORMS[self.norm](p.float(), h.float())  # [B,M,K]
        if self.by_distance:
            per_token = per_token / distance.sqrt()
        if prediction.context_weight is not None:
            per_token = per_token * prediction.context_weight
        return per_token.mean()

    def extra_repr(self) -> str:
        return f"norm={self.norm}, by_distance={self.by_distance}, {super().extra_repr()}"
