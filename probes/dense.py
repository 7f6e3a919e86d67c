"""Dense linear probing: what is where in a frame, read by one linear layer from every token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError, check_choice
from probes import segmentation
from probes.base import Probe
from probes.linear import LinearProbe
from probes.score import Answers, Scored
from probes.segmentation import IGNORE

By = Literal["closed_form", "gradient"]
MEASURED = 4096  # maps whose spread is looked at

Batches = Iterable[tuple[Tensor, Tensor]]


class DenseProbe(Probe):
    """The same linear layer on every token, for maps on the grid of the tokens (``target=map``): segmentation, depth.

    Classes are scored by intersection over union, values by R2. Tokens without a label (class 255, value NaN) teach
    nothing and are not scored. In closed form it is :class:`probes.linear.LinearProbe` on tokens in place of examples,
    and reads the cache in batches: memory does not grow with the number of tokens.

    Args:
        classes: number of classes; 0 for maps of values.
        ridge: weight of the penalty, relative to features and values of unit variance.
        iterations: most L-BFGS iterations (classes only).
        by: "closed_form", or "gradient" for the heads of a sweep.
    """

    def __init__(self, classes: int = 0, ridge: float = 1e-4, iterations: int = 200, by: By = "closed_form") -> None:
        super().__init__(classes)
        if classes > IGNORE:
            raise InputError(f"classes={classes}: expected at most {IGNORE}, as {IGNORE} stands for no class")
        self.ridge, self.iterations, self.by = ridge, iterations, check_choice("by", by, get_args(By))
        self.closed_form = by == "closed_form"
        self.layer = LinearProbe(ridge, "flat", classes, iterations)

    def build(self, z: Tensor, y: Tensor) -> None:
        self._check(y)
        if (tokens := z.shape[1] * z.shape[2]) != y.shape[1]:
            raise InputError(f"latents of {tokens} tokens for maps of {y.shape[1]}: embed with pool none")
        if not self._known(y).any():
            raise InputError("no token of the training maps has a label: check the maps")
        some = y[:: max(1, len(y) // MEASURED)]
        self.layer.build(_rows(z), y.new_zeros(1) if self.classes else some[self._known(some)][:, None])
        if not self.closed_form:  # of the tokens that are at hand
            self.layer.features.measure(z.flatten(0, 2))

    def forward(self, z: Tensor) -> Tensor:
        """``z [B,T,N,D]`` to values ``[B,T*N]``, or class scores ``[B,T*N,classes]``."""
        out = self.layer(_rows(z)).unflatten(0, (len(z), -1))
        return out if self.classes else out.squeeze(-1)

    def answer(self, prediction: Tensor) -> Tensor:
        """Values, or class numbers uint8 ``[B,T*N]``: scores of all tokens of all clips would not fit into memory."""
        return prediction.argmax(-1).to(torch.uint8) if self.classes else prediction

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        known = self._known(y)
        count = known.sum().clamp(min=1)
        if self.classes:
            scores, number = prediction.flatten(0, 1), y.long().flatten()
            return F.cross_entropy(scores, number, ignore_index=IGNORE, reduction="sum") / count
        error = self.layer.target(prediction[..., None]) - self.layer.target(torch.where(known, y, 0.0)[..., None])
        return torch.where(known[..., None], error, 0.0).square().sum() / count

    def footprint(self, z: Tensor) -> int:
        """Of each token the features, standardised, and the scores with their gradient."""
        tokens, width = z.shape[1] * z.shape[2], z.shape[3]
        return 4 * tokens * (3 * width + 4 * max(self.classes, 1))

    def fit(self, z: Tensor, y: Tensor) -> None:
        self.fit_batches([(z, y)])

    def fit_batches(self, batches: Batches) -> None:
        self.layer.fit_batches(_Tokens(self, batches))

    def typical(self, y: Tensor) -> Tensor:
        known = y[self._known(y)]
        return known.long().bincount().argmax() if self.classes else known.mean()

    def point(self, answers: Answers) -> float:
        return segmentation.point(answers, self.classes)

    def scored(self, answers: Sequence[Answers], seed: int = 0) -> Scored:
        if self.classes:
            return segmentation.segmentation(answers, self.classes, seed)
        return segmentation.values(answers, seed)

    def _known(self, y: Tensor) -> Tensor:
        return y != IGNORE if self.classes else y.isfinite()

    def _check(self, y: Tensor) -> None:
        """That the maps are of the kind that was asked for, and of known classes."""
        if y.ndim != 2 or (y.dtype == torch.uint8) != bool(self.classes):
            held = f"values, {y.dtype}" if y.is_floating_point() else "classes"
            wanted = "set classes to their number" if not y.is_floating_point() else "set classes to 0"
            raise InputError(f"classes={self.classes} for targets that are {held}: expected maps as target, {wanted}")
        if self.classes and (largest := int(torch.where(y == IGNORE, 0, y).max())) >= self.classes:
            known = f"0 to {self.classes - 1}, or {IGNORE}"
            raise InputError(f"the maps hold class {largest}, expected {known}: raise classes")


class _Tokens:
    """Batches of examples as batches of labelled tokens; each time anew."""

    def __init__(self, probe: DenseProbe, batches: Batches) -> None:
        self.probe, self.batches = probe, batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for z, y in self.batches:
            known = self.probe._known(y).flatten()
            if known.any():
                labels = y.flatten()[known]
                yield _rows(z)[known], labels.long() if self.probe.classes else labels[:, None]


def _rows(z: Tensor) -> Tensor:
    """``[B,T,N,D]`` to one example for each token, ``[B*T*N,1,1,D]``."""
    return z.flatten(0, 2)[:, None, None]
