"""The linear probe, in closed form: ridge regression, or multinomial logistic regression for classes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import InputError
from probes.base import Probe, Standardise, Tokens, flatten, reduced

LARGEST_SYSTEM = 16384  # equations that are solved at once: 2 GiB in float64


class LinearProbe(Probe):
    """Ridge regression (or logistic regression, when ``classes`` is given) on standardised features.

    Minimises ``mean((x W + b - y)^2) / 2 + ridge / 2 * |W|^2`` over standardised x and y, exactly, in float64.
    Classes: the cross entropy takes the place of the squared error (L-BFGS; the problem is convex).

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

    def reduce(self, z: Tensor) -> Tensor:
        return reduced(z, self.tokens)

    @torch.no_grad()
    def fit(self, z: Tensor, y: Tensor) -> None:
        x = flatten(z, self.tokens)
        self.features.measure(x)
        x = self.features(x).double()
        if self.classes:
            weight, bias = logistic(x, y, self.classes, self.ridge, self.iterations)
        else:
            self.target.measure(y)
            # Standardised x and y have mean zero, so the best bias is zero.
            weight, bias = ridge(x, self.target(y).double(), self.ridge), torch.zeros(y.shape[1])
        self.head.weight.copy_(weight.T)
        self.head.bias.copy_(bias)


def ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """``argmin_W |x W - y|^2 / n + penalty |W|^2`` for ``x [n,F]``, ``y [n,K]``: ``[F,K]``.

    Solved in the smaller of the two equivalent systems (F x F, or n x n).
    """
    n, width = x.shape
    size = min(n, width)
    if size > LARGEST_SYSTEM:
        raise InputError(
            f"a linear probe on {n} examples of {width} features: expected at most {LARGEST_SYSTEM} of one of them, "
            "set tokens to mean or use probes.attentive.AttentiveProbe"
        )
    gram = x.T @ x if width <= n else x @ x.T
    system = torch.linalg.cholesky(gram / n + penalty * torch.eye(size, dtype=x.dtype, device=x.device))
    if width <= n:
        return torch.cholesky_solve(x.T @ y / n, system)
    return x.T @ torch.cholesky_solve(y, system) / n


def logistic(x: Tensor, y: Tensor, classes: int, penalty: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression of ``y [n]`` on ``x [n,F]``: weight ``[F,classes]`` and bias ``[classes]``."""
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-7
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return weight.detach(), bias.detach()
