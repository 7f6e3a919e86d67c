"""The linear probe, trained by gradient, as linear evaluations are published."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from jepa.errors import check_choice
from probes.base import Optimizer, Probe, Standardise, Tokens, flatten


class LinearSGDProbe(Probe):
    """One linear layer on standardised features, trained by gradient: many learning rates and weight decays at once.

    It sees a batch at a time, so it has no limit on examples or features; where it is small enough,
    :class:`probes.linear.LinearProbe` finds the best layer at once. The statistics are measured before training, on a
    part of the examples, and take the place of the published batch norm. The problem is convex and starts from zero,
    so no seed of the weights matters.

    Args:
        tokens: "mean" averages the tokens of a frame, "flat" puts them side by side.
        classes: number of classes of the target; 0 means regression.
        optimizer: "sgd", with momentum, as published (Goyal et al. 2017 and what follows it), or "adamw".
    """

    def __init__(self, tokens: Tokens = "mean", classes: int = 0, optimizer: Optimizer = "sgd") -> None:
        super().__init__(classes)
        self.tokens: Tokens = tokens
        self.optimizer = check_choice("optimizer", optimizer, get_args(Optimizer))

    def build(self, z: Tensor, y: Tensor) -> None:
        x = flatten(z, self.tokens)
        self.features = Standardise(x.shape[1])
        self.features.measure(x)
        self.head = nn.Linear(x.shape[1], self.measure_target(y))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor) -> Tensor:
        out = self.head(self.features(flatten(z, self.tokens)))
        return out if self.classes else self.target.inverse(out)
