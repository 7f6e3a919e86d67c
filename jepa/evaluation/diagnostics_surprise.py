"""Violation of expectation: probe clips in which something impossible happens, and how surprise tells them.

Surprise is the error of a one-step forecast (Riochet et al. 2018; Garrido et al. 2025 for latents).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.errors import InputError

MOVING = 8  # levels of 255 by which a pixel that is not background differs from it


def threshold(calm: Tensor, rate: float) -> float:
    """The surprise that a share ``rate`` of steps like the calm ones [n] exceeds, at most and on average.

    The split-conformal quantile: the k-th smallest with k = ceil((n + 1) (1 - rate)). Where steps are exchangeable the
    rate of false alarms on further ones is at most ``rate``, and above ``rate - 1 / (n + 1)``.
    """
    if not 0 < rate < 1:
        raise InputError(f"a false alarm rate of {rate}: expected a share between 0 and 1, e.g. 0.01")
    place = math.ceil((len(calm) + 1) * (1 - rate) - 1e-9)
    if place > len(calm):
        need = math.ceil(1 / rate) - 1
        raise InputError(
            f"a false alarm rate of {rate:g} cannot be told from {len(calm)} steps: expected {need} or more; hold more "
            "episodes out for validation (parts), or raise the rate"
        )
    return float(calm.double().sort().values[place - 1])


def exceedance(violated: Tensor, calm: Tensor) -> Tensor:
    """For each violated step [n], the share of the calm ones [m] that surprised less, ties by half: [n].

    Its mean is the area under the ROC curve.
    """
    violated, calm = violated.double().contiguous(), calm.double().sort().values
    below = torch.searchsorted(calm, violated)
    return (below + torch.searchsorted(calm, violated, right=True)) / (2 * len(calm))


def background(video: Tensor) -> Tensor:
    """What does not move: the median of every pixel over the frames of an episode, uint8 [T,C,H,W] -> [C,H,W]."""
    return video.median(0).values


def recoloured(video: Tensor, still: Tensor) -> Tensor:
    """What moves takes another hue: frames uint8 [T,C,H,W] over their background [C,H,W].

    The hue turns by a third of the circle: the channels change places. What has no hue, as grey frames have none, is
    inverted.
    """
    moving = ((video.int() - still.int()).abs() > MOVING).any(1, keepdim=True)
    turned = video.roll(1, dims=1)
    grey = (video == video[:, :1]).all(1, keepdim=True)
    return torch.where(moving, torch.where(grey, 255 - video, turned), video)


def elsewhere(video: Tensor, frame: int, generator: torch.Generator) -> int:
    """A frame of an episode [T,C,H,W] to jump to: one of the half that differ most in their pixels from ``frame``."""
    difference = (video.float() - video[frame].float()).abs().mean((1, 2, 3))
    far = difference.argsort(descending=True)[: max(1, (len(video) - 1) // 2)]
    return int(far[torch.randint(len(far), (1,), generator=generator)])
