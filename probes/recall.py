"""Class-mean recall of the five highest scores: what anticipation is measured by, as every class weighs alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.score import Answers, Array, Scored, interval, over_seeds, resampled

K = 5
AT_ONCE = 256  # classes whose bootstrap draws are in memory at once


def hits(scores: Tensor, y: Tensor, k: int = K) -> Tensor:
    """Whether the class ``y [n]`` is among the k highest of ``scores [n,C]``: bool [n]. One without a score is not."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == y[:, None]).any(1)


def class_mean(right: Tensor, y: Tensor) -> float:
    """The share of ``right [n]`` in every class of ``y [n]``, averaged over the classes that occur."""
    _, place, count = y.unique(return_inverse=True, return_counts=True)
    return float((torch.zeros(len(count), dtype=torch.float64).index_add(0, place, right.double()) / count).mean())


def restricted(scores: Tensor, y: Tensor) -> Tensor:
    """``scores [n,C]`` without those of classes that are nowhere in ``y [n]``, as V-JEPA 2 is published."""
    allowed = torch.zeros(scores.shape[1], dtype=torch.bool).index_fill(0, y.unique(), True)
    return torch.where(allowed, scores, -torch.inf)


def draws(right: Tensor, y: Tensor, episode: NDArray[np.int64], seed: int) -> Array:
    """:func:`class_mean`, as it is and of each bootstrap draw of the episodes: ``[1+draws,1]``.

    A class that a draw misses does not count in it.
    """
    classes, place = np.unique(y.numpy(), return_inverse=True)
    total, present = 0.0, 0.0
    for start in range(0, len(classes), AT_ONCE):
        member = place[:, None] == np.arange(start, min(start + AT_ONCE, len(classes)))
        columns = np.concatenate([member & right.numpy()[:, None], member], axis=1).astype(np.float64)
        found, count = np.split(resampled(columns, episode, seed), 2, axis=1)  # the same draws for all classes
        total = total + (found / np.maximum(count, 1)).sum(1, keepdims=True)
        present = present + (count > 0).sum(1, keepdims=True)
    return total / present


def common(y: Tensor, parts: Sequence[int]) -> Tensor:
    """What :func:`recall` must know of the training, int64 [K,1+5]: how many classes the probe scores for each of the K
    answers, and which are most common in ``y [n,K]``; -1 stands for none, where fewer than 5 occur."""
    told = torch.full((y.shape[1], 1 + K), -1)
    for k, column in enumerate(y.unbind(1)):
        count = column.bincount()
        best = count.topk(min(K, len(count))).indices
        best = best[count[best] > 0]
        told[k, 0], told[k, 1 : 1 + len(best)] = parts[k], best
    return told


def point(answers: Answers) -> float:
    """The headline alone: the recall of the last answer."""
    scores, y = answers.prediction.split(answers.typical[:, 0].tolist(), dim=1)[-1], answers.y[:, -1].long()
    return class_mean(hits(scores, y), y)


def recall(answers: Sequence[Answers], seed: int = 0) -> Scored:
    """Recall and accuracy of every answer, averaged over seeds; the headline is the recall of the last answer.

    Classes are those of the test examples, as the challenge of EPIC-KITCHENS-100 counts them: of one that training
    lacked, the recall is zero. ``as_published`` leaves out the examples that are of such a class, and lets none but the
    classes of the others be answered.

    Args:
        answers: of each seed: scores [n, sum of the classes], class numbers [n,K], and :func:`common` as typical.
        seed: of the bootstrap.
    """
    scores = [each.prediction.split(each.typical[:, 0].tolist(), dim=1) for each in answers]
    y, episode = answers[0].y.long(), answers[0].episode
    told, headline = {}, np.zeros((1, 1))
    for k, name in enumerate(answers[0].names):
        told[name], headline = _answer([one[k] for one in scores], y[:, k], episode, answers, k, seed)
    numbers = {
        "metric": "recall_at_5",
        **{key: told[answers[0].names[-1]][key] for key in ("recall_at_5", "recall_at_5_interval")},
        "answers": told,
        "as_published": _as_published(scores, answers),
    }
    return Scored(numbers, headline[:, 0])


def _answer(
    scores: Sequence[Tensor], y: Tensor, episode: NDArray[np.int64], answers: Sequence[Answers], k: int, seed: int
) -> tuple[dict[str, Any], Array]:
    """What is told of answer ``k``, and its bootstrap draws ``[1+draws,1]``."""
    found = over_seeds([draws(hits(one, y), y, episode, seed) for one in scores], seed)
    fixed = [class_mean(torch.isin(y, each.typical[k, 1:]), y) for each in answers]
    return {
        "recall_at_5": float(found[0, 0]),
        "recall_at_5_interval": interval(found[1:, 0]),
        "recall_at_5_of_most_common": _mean(fixed),
        "top_1": _mean([hits(one, y, 1).double().mean() for one in scores]),
        "top_5": _mean([hits(one, y).double().mean() for one in scores]),
        "classes": len(y.unique()),
        "of_unseen_classes": _mean([(y >= one.shape[1]).sum() for one in scores]),
    }, found


def _as_published(scores: Sequence[Sequence[Tensor]], answers: Sequence[Answers]) -> dict[str, Any]:
    told, lost = {name: [] for name in answers[0].names}, []
    for parts, each in zip(scores, answers):
        y = each.y.long()
        seen = (y < each.typical[:, 0]).all(1)
        lost.append((~seen).sum())
        for name, one, column in zip(told, parts, y[seen].unbind(1)):
            if seen.any():
                told[name].append(class_mean(hits(restricted(one[seen], column), column), column))
    return {"recall_at_5": {name: _mean(each) for name, each in told.items() if each}, "left_out": _mean(lost)}


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean([float(value) for value in values]))
