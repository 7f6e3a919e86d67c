"""Scores of a probe that says whether something is so: how well it ranks, and how well it decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.score import Answers, Array, Scored, interval, over_seeds, resampled

BINS = 500  # ranks that the bootstrap tells apart


def certainty(prediction: Tensor) -> Tensor:
    """Scores ``[n,2]`` to the probability ``[n]`` of class 1."""
    return prediction.double().softmax(1)[:, 1]


def threshold(p: Tensor, y: Tensor) -> float:
    """The threshold on probabilities ``p [n]`` that gets most of ``y [n]`` right, half way between two of them.

    What reaches it is class 1. Of several that are as good, the one nearest to one half.
    """
    values, place = p.double().unique(return_inverse=True)
    negative, positive = (place[y == k].bincount(minlength=len(values)) for k in (0, 1))
    zero = torch.zeros(1, dtype=torch.int64)
    right = torch.cat([zero, negative.cumsum(0)]) + positive.sum() - torch.cat([zero, positive.cumsum(0)])
    middle = torch.cat([zero, (values[:-1] + values[1:]) / 2, zero + 1])
    best = middle[right == right.max()]
    return float(best[(best - 0.5).abs().argmin()])


def ranked(positive: Array, negative: Array) -> Array:
    """Area under the ROC curve and average precision ``[...,2]`` of counts ``[...,U]`` at U ascending scores.

    Of two examples of one score half a pair counts as ordered; the precision counts all of a score at once.
    """
    total, others = positive.sum(-1), negative.sum(-1)
    below = negative.cumsum(-1) - negative / 2
    hits, taken = (np.flip(x, -1).cumsum(-1) for x in (positive, positive + negative))
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (positive * below).sum(-1) / (total * others)
        precision = (np.flip(positive, -1) * hits / np.maximum(taken, 1)).sum(-1) / total
    return np.stack([area, precision], axis=-1)


def draws(p: Tensor, answers: Answers, seed: int) -> Array:
    """AUC and average precision ``[1+draws,2]``: exact as they are, of the bootstrap draws by ranks in bins."""
    y, n = answers.y.numpy(), len(answers.y)
    _, place, count = np.unique(p.numpy(), return_inverse=True, return_counts=True)
    exact = ranked(*_counts(place, y, len(count)))
    place = ((count.cumsum() - 1) * BINS // n)[place]
    numbers, row = np.unique(answers.episode, return_inverse=True)  # counted by episode: fewer rows than examples
    cells = np.bincount((2 * row + y) * BINS + place, minlength=2 * BINS * len(numbers))
    cells = cells.reshape(len(numbers), 2 * BINS).astype(np.float64)
    negative, positive = np.split(resampled(cells, numbers, seed), 2, axis=1)
    return np.concatenate([exact[None], ranked(positive, negative)[1:]])


def _counts(place: NDArray[np.int64], y: NDArray[np.int64], size: int) -> tuple[Array, Array]:
    """How many of class 1 and of class 0 are at each of ``size`` places."""
    positive, negative = (np.bincount(place[y == k], minlength=size).astype(np.float64) for k in (1, 0))
    return positive, negative


def area(answers: Answers) -> float:
    """Area under the ROC curve alone."""
    values, place = np.unique(certainty(answers.prediction).numpy(), return_inverse=True)
    return float(ranked(*_counts(place, answers.y.numpy(), len(values)))[0])


def detection(answers: Sequence[Answers], thresholds: Sequence[float], seed: int = 0) -> Scored:
    """How well class 1 is told from class 0; the headline is the area under the ROC curve.

    Args:
        answers: of each seed: scores [n,2], class numbers [n].
        thresholds: on the probability of class 1, of each seed, chosen without the test examples.
        seed: of the bootstrap.
    """
    chances = [certainty(each.prediction) for each in answers]
    found = over_seeds([draws(p, each, seed) for p, each in zip(chances, answers)], seed)
    decided = [decisions(p, each.y, limit) for p, each, limit in zip(chances, answers, thresholds)]
    numbers = {
        "metric": "auc",
        "auc": float(found[0, 0]),
        "auc_interval": interval(found[1:, 0]),
        "average_precision": float(found[0, 1]),
        "average_precision_interval": interval(found[1:, 1]),
        "positives": float(np.mean([float(each.y.double().mean()) for each in answers])),
        "at_threshold": {name: float(np.mean([part[name] for part in decided])) for name in decided[0]},
        "brier": float(np.mean([float((p - each.y).square().mean()) for p, each in zip(chances, answers)])),
    }
    return Scored(numbers, found[:, 0])


def decisions(p: Tensor, y: Tensor, limit: float) -> dict[str, Any]:
    """What probabilities ``p [n]`` decide about ``y [n]``, where what reaches ``limit`` is class 1."""
    said, so = p >= limit, y == 1
    both = int((said & so).sum())
    return {
        "threshold": limit,
        "accuracy": float((said == so).double().mean()),
        "precision": both / max(1, int(said.sum())),
        "recall": both / max(1, int(so.sum())),
    }
