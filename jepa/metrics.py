"""Is the representation alive, and does the predictor predict? Numbers that need no labels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def rankme(z: Tensor, centre: bool = True) -> Tensor:
    """Effective number of dimensions that the vectors z [...,D] span, between 1 and min(n, D): a scalar.

    RankMe (Garrido et al. 2023): exp of the entropy of the singular values, normalised to sum one. The paper does not
    centre; here the mean is removed unless ``centre`` is false, since an offset that all vectors share would pass
    for a dominating direction. Singular values within the rounding error of z count as zero: identical vectors
    have the value 1.
    """
    z = z.flatten(0, -2).float()
    rounding = torch.linalg.matrix_norm(z) * max(z.shape) * torch.finfo(z.dtype).eps
    values = torch.linalg.svdvals(z - z.mean(0) if centre else z)
    values = torch.where(values > rounding, values, 0)
    share = values / values.sum().clamp_min(torch.finfo(z.dtype).tiny)
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def feature_std(z: Tensor) -> Tensor:
    """Standard deviation of each dimension over the B*T frames: [B,T,N,D] -> [D].

    Each token position is measured by itself and the variances are averaged under the root: tokens that only tell
    where they are have no spread.
    """
    return z.flatten(0, 1).float().var(0).mean(0).sqrt()


@torch.no_grad()
def time_std(z: Tensor) -> Tensor:
    """Standard deviation of each dimension over the T >= 2 steps of a trajectory: [B,T,N,D] -> [D].

    The mean variance over trajectories and tokens under the root: what remains of :func:`feature_std` when each
    trajectory's own background is taken away.
    """
    return z.float().var(1).mean((0, 1)).sqrt()


@torch.no_grad()
def mean_cosine(z: Tensor) -> Tensor:
    """Mean cosine between different vectors of z [...,D], n >= 2 of them: one when all point the same way."""
    unit = F.normalize(z.flatten(0, -2).float(), dim=-1)
    n = len(unit)
    return (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))


@torch.no_grad()
def prediction_gain(p: Tensor, h_next: Tensor, h_now: Tensor) -> Tensor:
    """How much better the forecasts p are than "nothing changes": 1 - |p - h_next|^2 / |h_now - h_next|^2, a scalar.

    All of one shape. One is perfect, zero is a copy of the last latent, negative is worse than a copy; zero also
    where nothing moves and the forecast says so.
    """
    error = (p.float() - h_next.float()).square().mean()
    copy = (h_now.float() - h_next.float()).square().mean()
    return 1 - (error + 1e-12) / (copy + 1e-12)


class Moments:
    """Mean and scatter of rows that come in batches, in float64: memory width x width, however many rows there are.

    Batches are merged by their means (Chan, Golub and LeVeque 1983), so that nothing large cancels.

    Args:
        width: numbers of a row.
        diagonal: keep the scatter of each dimension by itself only: memory width.
        device: where the rows are.
    """

    ROWS = 8192  # that are in float64 at once

    def __init__(self, width: int, diagonal: bool = False, device: torch.device | str = "cpu") -> None:
        options = {"dtype": torch.float64, "device": device}
        self.count, self.mean = 0, torch.zeros(width, **options)
        self.scatter = torch.zeros(width if diagonal else (width, width), **options)  # sum of (x - mean)(x - mean)^T

    @torch.no_grad()
    def add(self, rows: Tensor) -> Moments:
        """Take in rows [n,width]; returns itself."""
        for part in rows.split(self.ROWS):
            part = part.double()
            mean = part.mean(0)
            part = part - mean
            step, total = mean - self.mean, self.count + len(part)
            share = self.count * len(part) / total
            if self.scatter.ndim == 1:
                self.scatter += part.square().sum(0) + share * step.square()
            else:
                self.scatter.addmm_(part.T, part).addr_(step, step, alpha=share)
            self.mean += step * (len(part) / total)
            self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """Of all rows so far, over their number: [width,width], or [width] where only the diagonal is kept."""
        return self.scatter / self.count

    @property
    def std(self) -> Tensor:
        """Of each dimension: [width]."""
        variance = self.covariance
        return (variance if variance.ndim == 1 else variance.diagonal()).clamp_min(0).sqrt()


@torch.no_grad()
def spectrum(covariance: Tensor) -> Tensor:
    """The variances [D] along the principal axes of a covariance [D,D], largest first; rounding errors are zero."""
    values = torch.linalg.eigvalsh(covariance.double()).flip(0)
    rounding = values[:1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > rounding, values, 0)


def effective_ranks(variances: Tensor) -> dict[str, float]:
    """How many of the axes with these variances [D] count: each number is k where k axes share all variance alike.

    ``rankme`` as :func:`rankme` measures it (the entropy of the singular values), ``entropy_rank`` the exp of the
    entropy of the variances, ``participation_ratio`` the square of their sum over the sum of their squares. All are 1
    where nothing varies.
    """
    if variances.sum() <= 0:
        return {"rankme": 1.0, "entropy_rank": 1.0, "participation_ratio": 1.0}
    share, root = variances / variances.sum(), variances.sqrt()
    return {
        "rankme": float(torch.special.entr(root / root.sum()).sum().exp()),
        "entropy_rank": float(torch.special.entr(share).sum().exp()),
        "participation_ratio": float(1 / share.square().sum()),
    }


def linear_cka(joint: Moments, width: int, norms: Tensor | None = None) -> float | None:
    """Linear CKA (Kornblith et al. 2019) of features x [n,width] and y [n,*] of the same rows.

    One where y is x rotated, shifted and scaled as a whole. For n rows of independent features it is about width / n
    instead of zero; the debiased one, from the unbiased HSIC of Song et al. 2012, is zero on average. None where one
    of them does not vary.

    Args:
        joint: moments of x and y side by side.
        width: of x.
        norms: what :func:`squared_norms` makes of the rows; with it the debiased CKA, which needs 4 rows.
    """
    scatter, n = joint.scatter, joint.count
    blocks = scatter[:width, width:], scatter[:width, :width], scatter[width:, width:]
    both, one, other = (block.square().sum() for block in blocks)
    if norms is not None:
        trace, second = blocks[1].trace(), blocks[2].trace()
        products = trace * second, trace**2, second**2
        both, one, other = (
            value - n / (n - 2) * norm + product / ((n - 1) * (n - 2))
            for value, norm, product in zip((both, one, other), norms, products)
        )
    scale = (one * other).clamp_min(0).sqrt()
    return float(both / scale) if scale > 0 else None


def squared_norms(pairs: Iterable[tuple[Tensor, Tensor]], joint: Moments) -> Tensor:
    """Sums over the rows of |x|^2 |y|^2, |x|^4 and |y|^4, mean removed: float64 [3], for :func:`linear_cka`.

    ``pairs``: x [n,width] and y [n,*] in batches, the rows that ``joint`` is of.
    """
    total = torch.zeros(3, dtype=torch.float64)
    for x, y in pairs:
        means = joint.mean.split([x.shape[1], y.shape[1]])
        a, b = ((rows.double() - mean).square().sum(1) for rows, mean in zip((x, y), means))
        total += torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()])
    return total
