"""What every probe is: a module from frozen latents to a prediction, with the encoder never inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError

Reads = Literal["frame", "next", "goal"]
Tokens = Literal["mean", "flat"]


class Standardise(nn.Module):
    """``(x - mean) / std`` per dimension, measured once on training data; constant dimensions become zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def measure(self, x: Tensor) -> None:
        """``x [n,width]``."""
        x = x.double()
        mean, std = x.mean(0), x.std(0, correction=0)
        # The floor is relative: rounding leaves a spread of about 1e-7 of the mean in a constant dimension.
        std = torch.where(std > 1e-6 * (1e-6 + mean.abs()), std, torch.ones_like(std))
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


def flatten(z: Tensor, tokens: Tokens) -> Tensor:
    """``z [B,T,N,D]`` to ``[B,T*D]`` (tokens averaged within each step) or ``[B,T*N*D]`` (tokens side by side)."""
    return (z.mean(2) if tokens == "mean" else z).flatten(1)


def reduced(z: Tensor, tokens: Tokens) -> Tensor:
    """What :func:`flatten` makes of ``z`` it also makes of this: ``[B,T,1,D]`` where tokens are averaged."""
    return z.mean(2, keepdim=True) if tokens == "mean" else z


class Probe(nn.Module, ABC):
    """A small model fitted on frozen latents.

    Call :meth:`build` once, then either ``fit`` (a closed form, where the probe has one) or train by gradient with
    :class:`probes.training.ProbeTask`.

    Args:
        classes: number of classes of the target; 0 means regression.
    """

    reads: ClassVar[Reads] = "frame"  # what one example holds: z_t; (z_t, z_t+1); (z_t, z_goal)
    closed_form: ClassVar[bool] = False

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        if classes < 0 or classes == 1:
            raise InputError(f"classes={classes}: expected 0 (regression) or at least 2, give the number of classes")
        self.classes = classes

    @abstractmethod
    def build(self, z: Tensor, y: Tensor) -> None:
        """Make the parameters, and measure what is standardised.

        ``z [m,T,N,D]``: some training examples (shapes and feature statistics); ``y``: the training targets,
        float ``[n,K]`` or class numbers ``[n]``.
        """

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """``z [B,T,N,D]`` to values in raw units ``[B,K]``, or class scores ``[B,classes]``."""

    def reduce(self, z: Tensor) -> Tensor:
        """What :meth:`fit` needs of latents ``[n,T,N,D]``, as few numbers as will do: all are in memory at once."""
        return z

    def fit(self, z: Tensor, y: Tensor) -> None:
        """The closed form: ``z [n,T,N,D]`` and ``y`` as in :meth:`build`. Only where ``closed_form`` is true."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form")

    def measure_target(self, y: Tensor) -> int:
        """Keep the targets' statistics and return the number of outputs."""
        outputs = self.classes or y.shape[1]
        self.target = Standardise(outputs)
        if not self.classes:
            self.target.measure(y)
        return outputs

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Cross entropy, or the squared error in units of the target's variance."""
        if self.classes:
            return F.cross_entropy(prediction, y)
        return F.mse_loss(self.target(prediction), self.target(y))
