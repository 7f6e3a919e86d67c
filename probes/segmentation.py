"""Scores of labels of single tokens: intersection over union of classes, R2 of values, by episode as all scores are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.errors import InputError
from probes.score import Answers, Array, Scored, interval, over_seeds, resampled

IGNORE = 255  # of classes; of values, NaN


def counts(prediction: Tensor, y: Tensor, classes: int) -> Array:
    """Of class numbers ``[n,L]``, for every example: tokens that both call c, that the prediction does, that are of c.

    ``[n,3*classes]``; tokens that are to be ignored count nowhere.
    """
    valid, example = y != IGNORE, torch.arange(len(y))[:, None].expand_as(y)
    said, true, row = prediction[valid].long(), y[valid].long(), example[valid]

    def per_class(number: Tensor, where: Tensor) -> Tensor:
        return (row * classes + number)[where].bincount(minlength=len(y) * classes).view(len(y), classes)

    all_of = torch.ones_like(said, dtype=torch.bool)
    sums = [per_class(true, said == true), per_class(said, all_of), per_class(true, all_of)]
    return torch.cat(sums, dim=1).double().numpy()


def ious(sums: Array) -> Array:
    """Sums of :func:`counts`, ``[m,3*classes]``, to the IoU of every class ``[m,classes]``, NaN for one that is neither
    there nor predicted."""
    both, said, true = np.split(sums, 3, axis=1)
    with np.errstate(invalid="ignore"):
        return both / (said + true - both)


def point(answers: Answers, classes: int) -> float:
    """The headline alone, without a bootstrap: mean IoU of classes, R2 of values (``classes`` 0)."""
    if classes:
        return float(np.nanmean(ious(_labelled(answers, classes).sum(0, keepdims=True))))
    return float(_explained(_moments(answers).sum(0, keepdims=True))[0, 0])


def segmentation(answers: Sequence[Answers], classes: int, seed: int = 0) -> Scored:
    """Mean IoU over the classes, that of every class, and the share of right tokens.

    The mean is over classes that are in the test maps, or predicted there. Answers are class numbers uint8 [n,L].
    """
    sums = [resampled(_labelled(each, classes), each.episode, seed) for each in answers]
    each_class = [ious(one) for one in sums]
    mean = over_seeds([np.nanmean(one, axis=1, keepdims=True) for one in each_class], seed)[:, 0]
    share = over_seeds([one[:, :classes].sum(1, keepdims=True) / one[:, 2 * classes :].sum(1, keepdims=True)
                        for one in sums], seed)[:, 0]  # fmt: skip
    numbers = {
        "metric": "mean_iou",
        "mean_iou": float(mean[0]),
        "mean_iou_interval": interval(mean[1:]),
        "token_accuracy": float(share[0]),
        "token_accuracy_interval": interval(share[1:]),
        "token_accuracy_of_most_common": float(np.mean([_common(one, each) for one, each in zip(sums, answers)])),
        "classes": _classes(each_class, sums[0], classes, seed),
    }
    return Scored(numbers, mean)


def _labelled(answers: Answers, classes: int) -> Array:
    """:func:`counts` of maps that have some class."""
    sums = counts(answers.prediction, answers.y, classes)
    if not sums[:, 2 * classes :].any():
        raise InputError("no token of the test maps has a class: expected some that are not 255, check the maps")
    return sums


def _common(sums: Array, answers: Answers) -> float:
    true = np.split(sums[0], 3)[2]
    return float(true[int(answers.typical)] / true.sum())


def _classes(each_class: Sequence[Array], sums: Array, classes: int, seed: int) -> dict[str, Any]:
    told = {}
    for number in np.flatnonzero(np.isfinite([one[0] for one in each_class]).all(0)).tolist():
        iou = over_seeds([one[:, [number]] for one in each_class], seed)[:, 0]
        tokens = int(sums[0, 2 * classes + number])
        told[str(number)] = {"iou": float(iou[0]), "iou_interval": interval(iou[1:]), "tokens": tokens}
    return told


def values(answers: Sequence[Answers], seed: int = 0) -> Scored:
    """R2 over all tokens, and the root of the mean squared error beside that of always answering the training mean."""
    draws = [_explained(resampled(_moments(each), each.episode, seed)) for each in answers]
    r2 = over_seeds(draws, seed)[:, 0]
    numbers = {
        "metric": "r2",
        "r2": float(r2[0]),
        "r2_interval": interval(r2[1:]),
        "rmse": float(np.mean([_rmse(each.prediction, each.y) for each in answers])),
        "rmse_of_mean": float(np.mean([_rmse(each.typical.expand_as(each.y), each.y) for each in answers])),
    }
    return Scored(numbers, r2)


def _rmse(prediction: Tensor, y: Tensor) -> float:
    valid = y.isfinite()
    return float((prediction[valid].double() - y[valid].double()).square().mean().sqrt())


def _moments(answers: Answers) -> Array:
    """What R2 is computed from, of every example ``[n,4]``: the number of values, the sum of the squared errors, and
    the sums of the squares and of the values themselves, which are shifted: that changes no variance."""
    valid = answers.y.isfinite()
    if valid.sum() < 2 or not (answers.y[valid] != answers.y[valid][0]).any():
        raise InputError("the test maps are constant, so R2 has no value: embed more episodes, or check the maps")
    y = torch.where(valid, answers.y.double() - answers.y[valid].double().mean(), 0.0)
    residual = torch.where(valid, answers.prediction.double() - answers.y.double(), 0.0).square().sum(1)
    return torch.stack([valid.sum(1).double(), residual, y.square().sum(1), y.sum(1)], dim=1).numpy()


def _explained(sums: Array) -> Array:
    """R2 ``[m,1]`` of sums of :func:`_moments`, ``[m,4]``."""
    count, residual, square, plain = np.split(sums, 4, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - residual / (square - plain**2 / count)
