"""Scores of a probe on unseen episodes, with intervals that respect the episodes and the seeds.

Frames of one episode resemble each other, so whole episodes are resampled (the cluster bootstrap), not frames. Where a
probe was fitted with several seeds, its score is their mean and every bootstrap draw resamples the seeds as well as the
episodes: the interval is about other seeds and other episodes, not about these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.errors import InputError

Array = NDArray[np.float64]
RESAMPLES = 2000
AT_ONCE = 2**22  # how often an episode was drawn: so many numbers are in memory at once
CONFUSED = 50  # classes at most whose confusions are counted


@dataclass(frozen=True)
class Answers:
    """What one fitted probe said of the test examples, beside the truth."""

    prediction: Tensor  # [n,K] in raw units, or scores [n,classes]
    y: Tensor  # float [n,K], or int64 [n] class numbers
    episode: NDArray[np.int64]  # [n]
    typical: Tensor  # of the training targets: their mean [K], or the number of the most common class
    names: tuple[str, ...] = ()  # K names of the target dimensions

    @property
    def classes(self) -> bool:
        return not self.y.is_floating_point()


@dataclass(frozen=True)
class Scored:
    """The numbers of a report, and what is needed to compare them with another's."""

    numbers: dict[str, Any]
    draws: Array  # [1+draws] the headline score, as it is and of each bootstrap draw


def point(answers: Answers) -> float:
    """The headline score alone: accuracy, or mean R2."""
    return headline(answers.prediction, answers.y)


def headline(prediction: Tensor, y: Tensor) -> float:
    """Accuracy of class scores ``[n,classes]`` for class numbers ``[n]``, or the mean R2 of values ``[n,K]``."""
    if not y.is_floating_point():
        return float((prediction.argmax(1) == y).double().mean())
    y, prediction = y.double(), prediction.double()
    residual, total = (y - prediction).square().sum(0), (y - y.mean(0)).square().sum(0)
    return float((1 - residual / total).mean())


def scored(answers: Sequence[Answers], seed: int = 0) -> Scored:
    """The scores of one probe that was fitted with several seeds, or with one; ``seed`` is the bootstrap's."""
    numbers = [np.unique(each.episode) for each in answers]
    assert all(np.array_equal(numbers[0], other) for other in numbers), "the seeds were tested on different episodes"
    return classification(answers, seed) if answers[0].classes else regression(answers, seed)


def regression(answers: Sequence[Answers], seed: int = 0) -> Scored:
    """R2 for every target and their mean, and the error beside that of always answering the training mean.

    Errors are mean squares in units of the test variance, averaged over targets.
    """
    for each in answers:
        if constant := [name for name, spread in zip(each.names, np.ptp(each.y.numpy(), axis=0)) if spread == 0]:
            raise InputError(f"target {constant[0]} is constant over the test episodes, so R2 has no value: drop it")
    r2 = over_seeds([_r2s(each, seed) for each in answers], seed)
    targets = enumerate(answers[0].names)
    numbers = {
        "metric": "r2",
        "r2": float(r2[0].mean()),
        "r2_interval": interval(r2[1:].mean(1)),
        "targets": {name: {"r2": float(r2[0, k]), "r2_interval": interval(r2[1:, k])} for k, name in targets},
        "error": float(np.mean([_error(each, each.prediction) for each in answers])),
        "error_of_mean": float(np.mean([_error(each, each.typical) for each in answers])),
    }
    return Scored(numbers, r2.mean(1))


def classification(answers: Sequence[Answers], seed: int = 0) -> Scored:
    """Accuracy, over all examples and of every class, beside that of always answering the training set's most common
    class; and of the answers of whole episodes, where these have one class and several examples.

    The class mean weighs every class alike, however many examples it has. Row i of the confusion counts the examples
    of class i by what was answered, summed over seeds.
    """
    accuracy = over_seeds([_accuracies(each, seed) for each in answers], seed)[:, 0]
    y, right = answers[0].y, torch.stack([each.prediction.argmax(1) == each.y for each in answers])
    shares = {str(int(number)): _share(right[:, y == number]) for number in y.unique()}
    common = [float((each.y == each.typical).double().mean()) for each in answers]
    numbers = {
        "metric": "accuracy",
        "accuracy": float(accuracy[0]),
        "accuracy_interval": interval(accuracy[1:]),
        "accuracy_of_most_common": float(np.mean(common)),
        "class_mean_accuracy": float(np.mean([share["accuracy"] for share in shares.values()])),
        "classes": shares,
        "confusion": _confusion(answers),
        "episodes_as_one": _voted(answers, seed),
    }
    return Scored(numbers, accuracy)


def gain(mine: Scored, other: Scored) -> dict[str, Any]:
    """By how much one scores higher (accuracy or mean R2) than another on the same examples, seed by seed.

    Both were scored on the same bootstrap draws, so that what makes an episode hard for both does not widen the
    interval.
    """
    assert mine.draws.shape == other.draws.shape, f"{mine.draws.shape} draws beside {other.draws.shape}"
    difference = mine.draws - other.draws
    return {"gain": float(difference[0]), "gain_interval": interval(difference[1:])}


def voted(answers: Answers) -> Answers | None:
    """One answer for each episode, the mean of its examples' (of classes, the mean of their probabilities), as is usual
    for the clips of a video; None where the target changes within an episode."""
    numbers, inverse = np.unique(answers.episode, return_inverse=True)
    place, count = torch.from_numpy(inverse), torch.from_numpy(np.bincount(inverse)).unsqueeze(1)
    first = torch.from_numpy(np.unique(inverse, return_index=True)[1])
    y = answers.y[first]
    if not torch.equal(y[place], answers.y):
        return None
    each = answers.prediction.float().softmax(1) if answers.classes else answers.prediction.float()
    mean = torch.zeros(len(numbers), each.shape[1]).index_add(0, place, each) / count
    # the logarithm, whose softmax is the mean again
    mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log() if answers.classes else mean
    return Answers(mean, y, numbers, answers.typical, answers.names)


def _voted(answers: Sequence[Answers], seed: int) -> dict[str, Any] | None:
    if len(np.unique(answers[0].episode)) == len(answers[0].episode):
        return None
    whole = [voted(each) for each in answers]
    if any(each is None for each in whole):
        return None
    accuracy = over_seeds([_accuracies(each, seed) for each in whole], seed)[:, 0]
    return {"accuracy": float(accuracy[0]), "accuracy_interval": interval(accuracy[1:])}


def _share(right: Tensor) -> dict[str, Any]:
    return {"accuracy": float(right.double().mean()), "examples": right.shape[1]}


def _confusion(answers: Sequence[Answers]) -> list[list[int]] | None:
    classes = answers[0].prediction.shape[1]
    if classes > CONFUSED:
        return None
    pairs = torch.cat([each.y * classes + each.prediction.argmax(1) for each in answers])
    return pairs.bincount(minlength=classes**2).view(classes, classes).tolist()


def _error(answers: Answers, guess: Tensor) -> float:
    truth, guess = answers.y.double().numpy(), guess.double().numpy()
    return float((((truth - guess) ** 2).mean(0) / truth.var(0)).mean())


def _r2s(answers: Answers, seed: int) -> Array:
    """R2 of every target, as it is and of each bootstrap draw: ``[1+draws,K]``."""
    truth, guess = answers.y.double().numpy(), answers.prediction.double().numpy()
    centred = truth - truth.mean(0)  # shifting changes no variance and avoids cancellation
    columns = (np.ones((len(truth), 1)), (truth - guess) ** 2, centred**2, centred)
    sums = resampled(np.concatenate(columns, axis=1), answers.episode, seed)
    count, (residual, square, plain) = sums[:, :1], np.split(sums[:, 1:], 3, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - residual / (square - plain**2 / count)


def _accuracies(answers: Answers, seed: int) -> Array:
    """The share of right answers, as it is and of each bootstrap draw: ``[1+draws,1]``."""
    right = (answers.prediction.argmax(1) == answers.y).double().numpy()
    sums = resampled(np.stack([right, np.ones_like(right)], axis=1), answers.episode, seed)
    return sums[:, :1] / sums[:, 1:]


def resampled(values: Array, episode: NDArray[np.int64], seed: int) -> Array:
    """Sums of ``values [n,K]`` over all episodes, then over the episodes of each bootstrap draw: ``[1+draws,K]``.

    A single episode resampled is itself, its draws say nothing: ``[1,K]``.
    """
    numbers, inverse = np.unique(episode, return_inverse=True)
    episodes = len(numbers)
    sums = np.zeros((episodes, values.shape[1]))
    np.add.at(sums, inverse, values)
    parts, generator = [sums.sum(0, keepdims=True)], np.random.default_rng(seed)
    left = RESAMPLES if episodes > 1 else 0
    while left:
        size = min(left, max(1, AT_ONCE // episodes))
        parts.append(generator.multinomial(episodes, np.full(episodes, 1 / episodes), size=size) @ sums)
        left -= size
    return np.concatenate(parts)


def over_seeds(scores: Sequence[Array], seed: int) -> Array:
    """Mean over the seeds ``[1+draws,K]``; each draw takes as many seeds as there are, with replacement."""
    seeds, rows = len(scores), len(scores[0])
    if seeds == 1:
        return scores[0]
    # a stream of its own: which episodes are drawn does not depend on the number of seeds
    drawn = np.random.default_rng([seed, seeds]).multinomial(seeds, np.full(seeds, 1 / seeds), size=rows - 1)
    weight = np.concatenate([np.ones((1, seeds)), drawn]) / seeds
    return np.einsum("ds,sdk->dk", weight, np.stack(scores))


def interval(draws: Array) -> list[float] | None:
    """The central 95 % of the bootstrap draws, or None where a draw has no value."""
    if len(draws) == 0 or not np.isfinite(draws).all():
        return None
    return [float(edge) for edge in np.percentile(draws, [2.5, 97.5])]
