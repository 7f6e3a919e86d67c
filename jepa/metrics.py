"""Is the representation alive, and does the predictor predict? Numbers that need no labels."""

from __future__ import annotations

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
