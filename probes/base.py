"""What every probe is: a module from frozen latents to a prediction, with the encoder never inside."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from jepa.errors import InputError
from probes import score

Reads = Literal["frame", "next", "goal"]
Tokens = Literal["mean", "flat"]
Optimizer = Literal["adamw", "sgd"]


class Standardise(nn.Module):
    """``(x - mean) / std`` per dimension, measured once on training data; constant dimensions become zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def measure(self, x: Tensor) -> None:
        """``x [n,width]``."""
        x = x.double()
        self.adopt(x.mean(0), x.std(0, correction=0))

    def adopt(self, mean: Tensor, std: Tensor) -> None:
        """Mean and standard deviation ``[width]`` that were measured already."""
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


class Probe(nn.Module, ABC):
    """A small model fitted on frozen latents.

    Call :meth:`build` once, then either ``fit`` (a closed form, where the probe has one) or train by gradient with
    :func:`probes.training.sweep`, many heads at once.

    Args:
        classes: number of classes of the target; 0 means regression.
    """

    reads: ClassVar[Reads] = "frame"  # what one example holds: z_t; (z_t, z_t+1); (z_t, z_goal)
    closed_form: ClassVar[bool] = False
    optimizer: Optimizer = "adamw"  # of a training by gradient; sgd has momentum
    calibrated: ClassVar[bool] = False  # whether it wants calibrate() after the fit

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

    def fit(self, z: Tensor, y: Tensor) -> None:
        """The closed form: ``z [n,T,N,D]`` and ``y`` as in :meth:`build`. Only where ``closed_form`` is true."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form")

    def fit_batches(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """As :meth:`fit`, of batches in one order that may be gone through again and again. By default all of them
        are in memory; probes that need not have that override this."""
        parts = list(batches)
        self.fit(torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts]))

    def measure_target(self, y: Tensor) -> int:
        """Keep the targets' statistics and return the number of outputs."""
        outputs = self.classes or y.shape[1]
        self.target = Standardise(outputs)
        if not self.classes:
            self.target.measure(y)
        return outputs

    def arguments(self) -> dict[str, Any]:
        """What it was made with, as plain values: for reports, and to make it again."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def answer(self, prediction: Tensor) -> Tensor:
        """What is scored, of what :meth:`forward` gave the loss: values ``[B,K]`` or class scores ``[B,classes]``."""
        return prediction

    def calibrate(self, prediction: Tensor, y: Tensor) -> None:
        """Choose what is chosen on examples of held-out training episodes. Only where ``calibrated`` is true."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to choose")

    def typical(self, y: Tensor) -> Tensor:
        """Of the training targets ``y``, what scores compare with: the most common class, or their mean."""
        return y.bincount().argmax() if self.classes else y.mean(0)

    def point(self, answers: score.Answers) -> float:
        """The headline score alone."""
        return score.point(answers)

    def scored(self, answers: Sequence[score.Answers], seed: int = 0) -> score.Scored:
        """The scores of what probes of this kind answered that were fitted with several seeds, or with one. Where the
        headline is neither accuracy nor R2, ``metric`` names it among the numbers."""
        return score.scored(answers, seed)

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Cross entropy, or the squared error in units of the target's variance: a mean over the examples."""
        if self.classes:
            return F.cross_entropy(prediction, y)
        return F.mse_loss(self.target(prediction), self.target(y))

    def together(self, weights: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """What K probes like this one predict, ``[K,B,...]``: ``weights`` holds each parameter of theirs, ``[K,...]``.

        They share ``z`` and what :meth:`build` measured. Probes that can share more of the work override this.
        """
        z = z.float()
        return torch.vmap(lambda own: functional_call(self, own, z), randomness="different")(dict(weights))

    def losses(self, predictions: Tensor, y: Tensor) -> Tensor:
        """The loss ``[K]`` of each of the predictions ``[K,B,...]``."""
        return torch.vmap(lambda prediction: self.loss(prediction, y))(predictions)

    def wrong(self, predictions: Tensor, y: Tensor) -> Tensor | None:
        """Share ``[K]`` of wrong answers in each of the predictions ``[K,B,classes]``; None where an example is not
        asked for one class."""
        one = bool(self.classes) and y.ndim == 1
        return (predictions.argmax(2) != y).float().mean(1) if one else None

    def footprint(self, z: Tensor) -> int:
        """Bytes, about, that one head keeps of one example of ``z [B,T,N,D]`` on the way to its gradient."""
        return 16 * z[0].numel()
