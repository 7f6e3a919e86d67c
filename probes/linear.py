"""The linear probe, in closed form: ridge regression, or multinomial logistic regression for classes.

Both go over the examples in batches. Memory grows with the width of the features, not with the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.metrics import Moments
from probes.base import Probe, Standardise, Tokens, flatten

Batches = Iterable[tuple[Tensor, Tensor]]  # latents or features, and targets; gone through several times

LARGEST_SYSTEM = 8192  # equations that are solved at once: 0.5 GiB in float64
NARROW = 4096  # up to so many features their covariance is always measured
RESIDENT = 2**28  # bytes of standardised features that are kept between the passes of a logistic regression
ROWS = 4096  # that are computed with at once
HISTORY = 10  # steps that L-BFGS remembers: each takes twice the memory of the weights


class LinearProbe(Probe):
    """Ridge regression (or logistic regression, when ``classes`` is given) on standardised features.

    Minimises ``mean((x W + b - y)^2) / 2 + ridge / 2 * |W|^2`` over standardised x and y, exactly, in float64.
    Classes: the cross entropy takes the place of the squared error. L-BFGS on the exact gradient of all examples; the
    problem is convex, and is solved in coordinates in which the features are uncorrelated, which takes far fewer
    passes.

    Args:
        ridge: weight of the penalty, relative to features and targets of unit variance.
        tokens: "mean" averages the tokens of a frame, "flat" puts them side by side.
        classes: number of classes of the target; 0 means regression.
        iterations: most L-BFGS iterations (classes only).
    """

    closed_form: ClassVar[bool] = True

    def __init__(self, ridge: float = 1e-4, tokens: Tokens = "mean", classes: int = 0, iterations: int = 200) -> None:
        super().__init__(classes)
        if ridge <= 0:
            raise InputError(f"ridge={ridge}: expected a positive number, a small one (1e-8) for nearly no penalty")
        self.ridge, self.tokens, self.iterations = ridge, tokens, iterations

    def build(self, z: Tensor, y: Tensor) -> None:
        width = flatten(z[:1], self.tokens).shape[1]
        self.features = Standardise(width)
        self.head = nn.Linear(width, self.measure_target(y))

    def forward(self, z: Tensor) -> Tensor:
        out = self.head(self.features(flatten(z, self.tokens)))
        return out if self.classes else self.target.inverse(out)

    def fit(self, z: Tensor, y: Tensor) -> None:
        self.fit_batches([(z, y)])

    @torch.no_grad()
    def fit_batches(self, batches: Batches) -> None:
        rows = _Changed(batches, lambda z: flatten(z, self.tokens))
        moments = self._measure(rows, diagonal=self.features.mean.numel() > NARROW)
        weight, bias = self._classify(rows, moments) if self.classes else self._regress(rows, moments)
        self.head.weight.copy_(weight.T)
        self.head.bias.copy_(bias)

    def _measure(self, rows: Batches, diagonal: bool) -> Moments:
        """Mean and scatter of the features; of a regression, those of the targets beside them."""
        width = self.features.mean.numel()
        outputs = 0 if self.classes else self.head.out_features
        moments = Moments(width + outputs, diagonal, self.features.mean.device)
        for x, y in rows:
            moments.add(torch.cat([x, y.to(x)], dim=1) if outputs else x)
        self.features.adopt(moments.mean[:width], moments.std[:width])
        if outputs:
            self.target.adopt(moments.mean[width:], moments.std[width:])
        return moments

    def _regress(self, rows: Batches, moments: Moments) -> tuple[Tensor, Tensor]:
        width, n = self.features.mean.numel(), moments.count
        if min(width, n) > LARGEST_SYSTEM:
            raise InputError(
                f"a linear probe on {n} examples of {width} features: expected at most {LARGEST_SYSTEM} of one of "
                "them, set tokens to mean or use probes.attentive.AttentiveProbe"
            )
        if moments.scatter.ndim == 1 and width <= n:
            moments = self._measure(rows, diagonal=False)
        if moments.scatter.ndim == 1:
            weight = dual(_Changed(rows, self.features), self.target, n, self.ridge)
        else:
            std = torch.cat([self.features.std, self.target.std]).double()
            gram = moments.covariance / std / std[:, None]
            weight = _solved(gram[:width, :width], gram[:width, width:], self.ridge)
        # What is standardised has mean zero, so the best bias is zero but for how float32 rounded the means.
        x, y = self.features, self.target
        means = moments.mean.split([width, moments.mean.numel() - width])
        offset = [(mean - kept.mean.double()) / kept.std.double() for mean, kept in zip(means, (x, y))]
        return weight, offset[1] - offset[0] @ weight

    def _classify(self, rows: Batches, moments: Moments) -> tuple[Tensor, Tensor]:
        std = self.features.std.double()
        gram = None if moments.scatter.ndim == 1 else moments.covariance / std / std[:, None]
        standardised: Batches = _Changed(rows, self.features)
        if 4 * moments.count * len(std) <= RESIDENT:
            standardised = list(standardised)
        return logistic(standardised, len(std), self.classes, self.ridge, self.iterations, gram)


class _Changed:
    """Batches whose first part a function has changed, in pieces, anew each time that they are gone through."""

    def __init__(self, batches: Batches, change: Callable[[Tensor], Tensor]) -> None:
        self.batches, self.change = batches, change

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (
            (self.change(part), label) for x, y in self.batches for part, label in zip(x.split(ROWS), y.split(ROWS))
        )


def _solved(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """``(gram + penalty)^-1 cross``."""
    system = gram.clone()
    system.diagonal().add_(penalty)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(system))


def dual(batches: Batches, target: Standardise, n: int, penalty: float) -> Tensor:
    """Ridge regression where the features ``x [.,F]`` are more than the n examples, in the n x n system: ``[F,K]``.

    Every batch meets every other, so two of them are in memory.
    """
    targets = [target(y) for _, y in batches]
    gram, row = None, 0
    for x, _ in batches:
        gram = x.new_zeros(n, n, dtype=torch.float64) if gram is None else gram
        x, column = x.double(), 0
        for other, _ in batches:
            gram[row : row + len(x), column : column + len(other)] = x @ other.double().T / n
            column += len(other)
        row += len(x)
    share = _solved(gram, torch.cat(targets).double(), penalty) / n
    parts = share.split([len(part) for part in targets])
    return sum(x.double().T @ part for (x, _), part in zip(batches, parts))


def logistic(
    batches: Batches, width: int, classes: int, penalty: float, iterations: int, gram: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression of ``y [n]`` on ``x [n,F]``: weight ``[F,classes]`` and bias ``[classes]``.

    Loss and gradient are those of all examples: computed in float32, summed in float64. With the features' covariance
    ``gram`` the weights are sought as L^-T V where L L^T = gram + classes * penalty, about the shape of the loss.
    """
    device = next(iter(batches))[0].device
    v = torch.zeros(width, classes, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=device, requires_grad=True)
    scale = None if gram is None else torch.linalg.cholesky(gram + classes * penalty * torch.eye(width).to(gram))
    optimiser = torch.optim.LBFGS(
        [v, bias],
        max_iter=iterations,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-7,
        tolerance_change=1e-7,
    )

    def weights() -> Tensor:
        return v.detach() if scale is None else torch.linalg.solve_triangular(scale.T, v.detach(), upper=True)

    def closure() -> Tensor:
        weight = weights()
        loss, slope, bias.grad = _cross_entropy(batches, weight, bias.detach())
        slope += penalty * weight
        v.grad = slope if scale is None else torch.linalg.solve_triangular(scale, slope, upper=False).contiguous()
        return loss + penalty / 2 * weight.square().sum()

    optimiser.step(closure)
    return weights(), bias.detach()


def _cross_entropy(batches: Batches, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its mean over all examples, and the gradients by the weight and the bias."""
    loss, slope, step, n = bias.new_zeros(()), torch.zeros_like(weight), torch.zeros_like(bias), 0
    w, b = weight.float(), bias.float()
    for x, y in batches:
        scores = torch.addmm(b, x, w)
        loss += F.cross_entropy(scores, y, reduction="sum")
        residual = scores.softmax(1).sub_(F.one_hot(y, len(b)))
        slope += x.T @ residual
        step += residual.sum(0)
        n += len(y)
    return loss / n, slope / n, step / n
