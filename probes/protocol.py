"""How every probe of a report is fitted: one probe, one feature cache, one seed, and so many labels."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa.errors import InputError
from probes.base import Probe
from probes.cache import MEMORY, Examples, FeatureCache, Segments, batches, hold_out
from probes.saved import recipe
from probes.score import Answers, voted
from probes.training import HELD_OUT, predict, sweep

IDENTITY = ("weights", "checkpoint", "data", "pool", "layers")  # what the report repeats of a cache
FORM = ("steps", "tokens", "width", "pool", "layers")  # of the latents, which are the same for all seeds of an encoder


@dataclass(frozen=True)
class Protocol:
    """What is the same for the encoder and for everything that it is compared with: see :func:`probes.task.probe`."""

    target: str
    reach: int
    segments: Segments
    training: dict[str, Any]  # of probes without a closed form: the arguments of probes.training.sweep


@dataclass(frozen=True)
class Fitted:
    """A probe fitted on one cache, what it answered on the test split, and how it came about."""

    probe: Probe
    answers: Answers
    chosen: dict[str, Any] | None  # of several heads: the settings of the one that was chosen
    published: float | None  # the highest score that any of them has on the test split
    examples: dict[str, int]
    episodes: dict[str, int]
    seconds: float
    features: dict[str, Any]
    recipe: dict[str, Any]  # see probes.saved


def fit(features: Path, probe: Probe, how: Protocol, labelled: float, seed: int) -> Fitted:
    """Fit a fresh copy of ``probe`` with ``labelled`` of the training episodes, and ask it about the test split."""
    cache = FeatureCache(features)
    train, test = _examples(cache, probe, how, labelled, seed)
    torch.manual_seed(seed)
    probe, start = copy.deepcopy(probe), time.perf_counter()
    heads: list[Probe] = []
    chosen = None
    if probe.closed_form:
        probe.build(train[:1][0], train.y)
        probe.fit_batches(batches(train, max(1, train.affordable // 4)))  # two and some copies are alive at once
    else:
        swept = sweep(probe, train, seed=seed, **how.training)
        probe, chosen, heads = swept.probe, swept.chosen, swept.heads
        if probe.calibrated:
            probe.calibrate(*predict(probe, hold_out(train, HELD_OUT, seed)[1]))
    seconds = time.perf_counter() - start
    answers = _answers(probe, test, train.y, how.segments)
    if not answers.prediction.isfinite().all():
        raise InputError(f"the probe fitted on {features} answers NaN or infinity: lower lr or raise ridge")
    return Fitted(
        probe,
        answers,
        chosen,
        _published(heads, test, answers, how.segments),
        {"train": len(train), "test": len(test)},
        {"train": len(np.unique(train.episode)), "test": len(np.unique(test.episode))},
        round(seconds, 3),
        {"path": str(features)} | {name: cache.meta[name] for name in IDENTITY},
        recipe(probe, train),
    )


def _examples(
    cache: FeatureCache, probe: Probe, how: Protocol, labelled: float, seed: int
) -> tuple[Examples, Examples]:
    options = {"reads": probe.reads, "classes": probe.classes, "reach": how.reach, "segments": how.segments}
    train = cache.examples("train", how.target, seed=seed, **options)
    test = cache.examples("test", how.target, seed=seed + 1, **options)
    if train.rows.shape[1] != test.rows.shape[1]:
        raise InputError(
            f"{cache.path} has {train.rows.shape[1]} clips of a training video and {test.rows.shape[1]} of a test "
            "video: embed as many of each, or set segments to each"
        )
    if labelled < 1:
        train = few(train, labelled, seed)
    for split, y in (("training", train.y), ("test", test.y)):
        if probe.classes and len(y.unique()) == 1:
            only = f"all {len(y)} {split} examples have class {int(y.flatten()[0])} of target {how.target}"
            raise InputError(f"{only}: expected at least 2 classes, choose another target or embed more episodes")
    return train, test


def _answers(probe: Probe, test: Examples, learnt: Tensor, segments: Segments) -> Answers:
    """``learnt``: the training targets."""
    prediction, y = predict(probe, test)
    return _of_videos(Answers(prediction, y, test.episode, probe.typical(learnt), test.names), segments)


def _of_videos(answers: Answers, segments: Segments) -> Answers:
    """Joint segments are answered video by video: the views' answers are averaged."""
    if segments == "each":
        return answers
    if (whole := voted(answers)) is None:
        raise InputError("segments=joint with a target that changes within a video: expected its label, choose one")
    return whole


class Together(nn.Module):
    """Several heads on the same latents: ``z [B,T,N,D]`` to ``[B,heads,K]``."""

    def __init__(self, heads: Sequence[Probe]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([head.answer(head(z)) for head in self.heads], dim=1)

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction


def _published(heads: Sequence[Probe], test: Examples, like: Answers, segments: Segments) -> float | None:
    """The highest score that one of several heads has on the test split; None where there is no choice."""
    if len(heads) < 2:
        return None
    size = max(1, MEMORY // (4 * len(test) * like.prediction.shape[1]))  # heads whose answers are in memory at once
    scores = []
    for start in range(0, len(heads), size):
        prediction, y = predict(Together(heads[start : start + size]), test)
        each = (Answers(part, y, test.episode, like.typical, test.names) for part in prediction.unbind(1))
        scores += [heads[0].point(_of_videos(answers, segments)) for answers in each]
    return max((score for score in scores if np.isfinite(score)), default=None)


def few(examples: Examples, part: float, seed: int) -> Examples:
    """The examples of ``part`` of the episodes, drawn by the seed; a smaller part lies within every larger one.

    Of classes, at least one example each: where a draw would miss one, the first episode that holds it moves up.
    """
    numbers = np.unique(examples.episode)
    order = np.random.default_rng(seed).permutation(numbers)
    count = round(part * len(numbers))
    least = 1
    if not examples.y.is_floating_point() and examples.y.ndim == 1:
        first = _firsts(examples, order)
        order, least = np.concatenate([order[first], np.delete(order, first)]), len(first)
    if count < least:
        wanted = f"one of each of {len(examples.y.unique())} classes" if least > 1 else "one"
        share = np.ceil(1000 * least / len(numbers)) / 1000
        raise InputError(
            f"labelled={part:g} keeps {count} of {len(numbers)} training episodes: expected {wanted}, give at least "
            f"{share:g}"
        )
    return examples.select(np.isin(examples.episode, order[:count]))


def _firsts(examples: Examples, order: np.ndarray) -> np.ndarray:
    """Places in ``order`` of the episodes in which a class comes first, ascending."""
    rank = np.empty(len(order), dtype=np.int64)
    rank[np.searchsorted(np.sort(order), order)] = np.arange(len(order))
    place = rank[np.searchsorted(np.sort(order), examples.episode)]
    y = examples.y.numpy()
    return np.unique([place[y == number].min() for number in np.unique(y)])


def check_same_data(name: str, caches: Sequence[FeatureCache], first: FeatureCache) -> None:
    """InputError where a cache holds other data than the first one, or other features than those of the other seeds:
    their scores could not be compared."""
    for cache in caches:
        different = [key for key in ("data", "splits") if first.meta[key] != cache.meta[key]]
        if not different and not np.array_equal(first.offsets, cache.offsets):
            different.append("the clips that could be read")
        if first.specs.action.block != cache.specs.action.block:
            different.append("frame skip")
        if different:
            told = ", ".join(different)
            raise InputError(f"{name} {cache.path} differs from {first.path} in {told}: embed the same data")
        if other := [key for key in FORM if cache.meta[key] != caches[0].meta[key]]:
            told = f"are of another encoder than {caches[0].path}, they differ in {', '.join(other)}"
            raise InputError(f"{name} {cache.path} {told}: give caches of one encoder, trained with several seeds")
