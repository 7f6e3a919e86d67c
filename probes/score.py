"""Scores of a probe on unseen episodes, with intervals that respect the episodes.

Frames of one episode resemble each other, so whole episodes are resampled (the cluster bootstrap), not frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.errors import InputError

Array = NDArray[np.float64]
RESAMPLES = 2000


def _by_episode(values: Array, episode: NDArray[np.int64]) -> Array:
    """Sums over each episode: ``[n,K]`` to ``[E,K]``."""
    numbers, inverse = np.unique(episode, return_inverse=True)
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, inverse, values)
    return sums


def _resampled(episodes: int, seed: int) -> NDArray[np.int64]:
    """How often each episode is drawn: the first row takes each once, the others are bootstrap draws."""
    draws = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES)
    return np.concatenate([np.ones((1, episodes), dtype=np.int64), draws])


def _interval(draws: Array) -> list[float] | None:
    """The central 95 % of the bootstrap draws, or None where a draw has no value."""
    if len(draws) == 0 or not np.isfinite(draws).all():
        return None
    return [float(edge) for edge in np.percentile(draws, [2.5, 97.5])]


def _r2s(prediction: Tensor, y: Tensor, episode: NDArray[np.int64], seed: int) -> Array:
    """R2 of every target, as it is and of each bootstrap draw: ``[1+draws,K]``."""
    truth, guess = y.double().numpy(), prediction.double().numpy()
    centred = truth - truth.mean(0)  # shifting changes no variance and avoids cancellation
    draws = _resampled(len(np.unique(episode)), seed)
    count = draws @ _by_episode(np.ones((len(truth), 1)), episode)
    residual = draws @ _by_episode((truth - guess) ** 2, episode)
    total = draws @ _by_episode(centred**2, episode) - (draws @ _by_episode(centred, episode)) ** 2 / count
    with np.errstate(divide="ignore", invalid="ignore"):
        return _several(1 - residual / total, draws)


def _accuracies(prediction: Tensor, y: Tensor, episode: NDArray[np.int64], seed: int) -> Array:
    """The share of right answers, as it is and of each bootstrap draw: ``[1+draws]``."""
    right = (prediction.argmax(1) == y).double().numpy()[:, None]
    draws = _resampled(len(np.unique(episode)), seed)
    shares = draws @ _by_episode(right, episode) / (draws @ _by_episode(np.ones_like(right), episode))
    return _several(shares[:, 0], draws)


def _several(scores: Array, draws: NDArray[np.int64]) -> Array:
    """A single episode resampled is itself: its draws say nothing."""
    return scores if draws.shape[1] > 1 else scores[:1]


def regression(
    prediction: Tensor, y: Tensor, mean: Tensor, episode: NDArray[np.int64], names: tuple[str, ...], seed: int = 0
) -> dict[str, Any]:
    """R2 for every target and their mean, and the error beside that of always answering the training mean.

    ``prediction, y [n,K]`` in raw units; ``mean [K]`` of the training targets; ``episode [n]``. Errors are mean
    squares in units of the test variance, averaged over targets.
    """
    truth, guess = y.double().numpy(), prediction.double().numpy()
    if constant := [name for name, spread in zip(names, np.ptp(truth, axis=0)) if spread == 0]:
        raise InputError(f"target {constant[0]} is constant over the test episodes, so R2 has no value: drop it")
    r2, spread = _r2s(prediction, y, episode, seed), truth.var(0)
    return {
        "r2": float(r2[0].mean()),
        "r2_interval": _interval(r2[1:].mean(1)),
        "targets": {name: {"r2": float(r2[0, k]), "r2_interval": _interval(r2[1:, k])} for k, name in enumerate(names)},
        "error": float((((truth - guess) ** 2).mean(0) / spread).mean()),
        "error_of_mean": float((((truth - mean.double().numpy()) ** 2).mean(0) / spread).mean()),
    }


def classification(
    prediction: Tensor, y: Tensor, common: int, episode: NDArray[np.int64], seed: int = 0
) -> dict[str, Any]:
    """Accuracy, over all examples and of every class, beside that of always answering the training set's most
    ``common`` class; and of the answers of whole episodes, where these have one class and several examples.

    ``prediction [n,classes]`` scores; ``y [n]`` class numbers; ``episode [n]``.
    """
    accuracy = _accuracies(prediction, y, episode, seed)
    right = prediction.argmax(1) == y
    return {
        "accuracy": float(accuracy[0]),
        "accuracy_interval": _interval(accuracy[1:]),
        "accuracy_of_most_common": float((y == common).double().mean()),
        "classes": {str(int(number)): _share(right[y == number]) for number in y.unique()},
        "episodes_as_one": _voted(prediction, y, episode, seed),
    }


def _share(right: Tensor) -> dict[str, Any]:
    return {"accuracy": float(right.double().mean()), "examples": len(right)}


def _voted(prediction: Tensor, y: Tensor, episode: NDArray[np.int64], seed: int) -> dict[str, Any] | None:
    """Accuracy where the probabilities of an episode's examples are averaged, as is usual for the clips of a video."""
    numbers, inverse = np.unique(episode, return_inverse=True)
    place = torch.from_numpy(inverse)
    classes = torch.zeros(len(numbers), dtype=y.dtype).scatter(0, place, y)
    if len(numbers) == len(y) or not torch.equal(classes[place], y):
        return None
    summed = torch.zeros(len(numbers), prediction.shape[1]).index_add(0, place, prediction.float().softmax(1))
    accuracy = _accuracies(summed, classes, numbers, seed)
    return {"accuracy": float(accuracy[0]), "accuracy_interval": _interval(accuracy[1:])}


def gain(
    prediction: Tensor, baseline: Tensor, y: Tensor, episode: NDArray[np.int64], classes: bool, seed: int = 0
) -> dict[str, Any]:
    """By how much a prediction scores higher (accuracy or mean R2) than a baseline's of the same examples.

    Both are scored on the same bootstrap draws, so that what makes an episode hard for both does not widen the
    interval.
    """
    if classes:
        difference = _accuracies(prediction, y, episode, seed) - _accuracies(baseline, y, episode, seed)
    else:
        difference = (_r2s(prediction, y, episode, seed) - _r2s(baseline, y, episode, seed)).mean(1)
    return {"gain": float(difference[0]), "gain_interval": _interval(difference[1:])}
