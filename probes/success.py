"""Success detection: does a frame show that its goal is reached, as far as its latent and the goal's can tell?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from jepa.errors import InputError
from probes import detection, score
from probes.base import Probe, Reads, Standardise, Tokens, flatten
from probes.pairs import TARGET
from probes.policy import network, relative


class SuccessProbe(Probe):
    """Is the goal reached? A network of two hidden layers over a frame's latent and the goal's, and their difference.

    Target ``success``: examples are balanced pairs of frames, labelled by the environment's rule (:mod:`probes.pairs`).
    The threshold on the probability is chosen on held-out training episodes and kept with the weights.

    Args:
        hidden: width of the hidden layers.
        tokens: "mean" averages the tokens of a frame, "flat" puts them side by side.
    """

    reads: ClassVar[Reads] = "goal"
    calibrated: ClassVar[bool] = True

    def __init__(self, hidden: int = 128, tokens: Tokens = "mean") -> None:
        super().__init__(classes=2)
        if hidden < 1:
            raise InputError(f"hidden={hidden}: expected at least 1, give the width of the hidden layers")
        self.hidden, self.tokens = hidden, tokens

    def build(self, z: Tensor, y: Tensor) -> None:
        if z.shape[1] != 2 or y.is_floating_point():
            raise InputError(f"SuccessProbe reads pairs with the target {TARGET}: set target to {TARGET}")
        x = flatten(z.flatten(0, 1).unsqueeze(1), self.tokens)
        self.features = Standardise(x.shape[1])
        self.features.measure(x)
        self.head = network(3 * x.shape[1], self.hidden, self.measure_target(y))
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, z: Tensor) -> Tensor:
        x = relative(z, self.features, self.tokens)
        return self.head(torch.cat([x.flatten(1), x[:, 1].abs()], dim=1))

    def reached(self, z: Tensor, goal: Tensor) -> Tensor:
        """Latents of frames and goals ``[B,1,N,D]`` -> bool ``[B]``."""
        return detection.certainty(self(torch.cat([z, goal], dim=1))) >= self.threshold

    def calibrate(self, prediction: Tensor, y: Tensor) -> None:
        self.threshold.fill_(detection.threshold(detection.certainty(prediction), y))

    def typical(self, y: Tensor) -> Tensor:
        """The threshold, which the scores of a seed need, and which no training target tells."""
        return self.threshold.detach().cpu().clone()

    def point(self, answers: score.Answers) -> float:
        """The area under the ROC curve."""
        return detection.area(answers)

    def scored(self, answers: Sequence[score.Answers], seed: int = 0) -> score.Scored:
        return detection.detection(answers, [float(each.typical) for each in answers], seed)
