"""Draws the samples of a generator again until they are large enough, and measures how large they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jepa.errors import InputError
from jepa.masks.generators import Chance, Grid, MaskGenerator
from jepa.masks.random import Array, fold

ATTEMPTS = 100  # draws of one sample until its context and its targets are large enough
PATIENCE = 20  # of legacy masks, as published, draws until a context may overlap one more of its targets
REFERENCE = 1024  # samples that stand for a generator: always the same ones, whatever the seed of the masks
CHUNK = 64  # of them at a time


def draw(
    generator: MaskGenerator, key: Array, grid: Grid, legacy: bool = False, least: tuple[int, int] = (0, 0)
) -> tuple[Array, Array]:
    """Of every sample, a key of [B], the first draw that is large enough: bool [B,N] and [B,M,N].

    ``least``: tokens of a context and of each target that are enough, beside the generator's own ``min_keep``.
    """
    rows, size_key = np.arange(len(key)), fold(key[:1], ATTEMPTS)
    least_context, least_target = max(least[0], generator.min_keep + 1), least[1]
    for attempt in range(ATTEMPTS):
        own = fold(key[rows], attempt)
        sizes, relaxed = (size_key.repeat(len(rows)), attempt // PATIENCE) if legacy else (own, 0)
        drawn = generator.draw(Chance(own, sizes, legacy, relaxed), grid)
        if not attempt:
            context, target = drawn
        else:
            context[rows], target[rows] = drawn
        small = (drawn[0].sum(1) < least_context) | (drawn[1].sum(2) < least_target).any(1)
        rows = rows[small]
        if not len(rows):
            return context, target
    raise InputError(
        f"{type(generator).__name__} left a context of fewer than {least_context} tokens (or a target of fewer than "
        f"{least_target}) in {ATTEMPTS} draws on a grid {grid}; give fewer or smaller blocks, a smaller min_keep or a "
        "larger grid"
    )


def fixed_lengths(generator: MaskGenerator, grid: Grid, quantile: float) -> tuple[int, int]:
    """Tokens that all contexts, and all targets, of the reference samples have but for the fraction ``quantile``."""
    context, target = map(np.concatenate, zip(*_reference(generator, grid)))
    return tuple(int(np.quantile(tokens, quantile, method="lower")) for tokens in (context, target.min(1)))


def mean_lengths(generator: MaskGenerator, grid: Grid) -> tuple[int, int]:
    """Mean tokens of a context and of a target of the reference samples."""
    context, target = map(np.concatenate, zip(*_reference(generator, grid)))
    return round(context.mean()), round(target.mean())


def legacy_lengths(generator: MaskGenerator, grid: Grid, batch: int) -> tuple[int, int]:
    """Mean over the reference batches of the smallest context and the smallest target."""
    shortest = [(context.min(), target.min()) for context, target in _reference(generator, grid, batch)]
    return tuple(round(mean) for mean in np.mean(shortest, axis=0))


def _reference(generator: MaskGenerator, grid: Grid, batch: int | None = None) -> Iterator[tuple[Array, Array]]:
    """Tokens of contexts [R] and of targets [R,M], chunk by chunk; with ``batch``, of legacy batches of that size."""
    samples = CHUNK * batch if batch else REFERENCE
    keys = fold(np.zeros(samples, dtype=np.uint64), np.arange(samples))
    for key in np.split(keys, range(batch or CHUNK, samples, batch or CHUNK)):
        context, target = draw(generator, key, grid, legacy=batch is not None)
        yield context.sum(1), target.sum(2)
