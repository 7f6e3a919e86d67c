"""From the masks of samples, whose rows have different lengths, to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.masks.drawing import draw, fixed_lengths, legacy_lengths, mean_lengths
from jepa.masks.generators import Grid, MaskGenerator
from jepa.masks.random import WORD, Array, choose, first, fold, order
from jepa.schema import Mask

COLLATIONS = ("random_subset", "packed", "legacy")
MOST = 0.25  # of the draws of a generator, the largest quantile: most draws must be long enough


class Masks:
    """Draws one mask per generator for every sample of a batch.

    Under ``random_subset`` and ``packed`` the mask of a sample is a function of (seed, id, generator, grid) alone:
    the masks of a joint batch are those of its parts, over processes and over accumulated batches alike.

    ``random_subset`` gives each generator on each grid fixed lengths, so that shapes never change: K of the context
    and L of each target, the ``quantile`` of the lengths of 1024 reference draws. A longer row loses a random choice
    of its tokens. A sample with a shorter context or target is drawn again, so that the extremes of the generator
    never occur: the fraction ``quantile`` with the smallest contexts and the one with the smallest targets.

    Args:
        generators: what draws; the model meets each clip once under every mask
        collation: how rows of different lengths become tensors: ``random_subset`` is unbiased at any batch size,
            ``packed`` keeps every token, ``legacy`` keeps the first ones, as published
        seed: seed of the masks
        quantile: of ``random_subset``, 0 to 0.25; the larger, the more tokens are kept and the more samples are drawn
            again
    """

    def __init__(
        self,
        generators: Sequence[MaskGenerator],
        collation: Literal["random_subset", "packed", "legacy"] = "random_subset",
        seed: int = 0,
        quantile: float = 0.05,
    ) -> None:
        if not generators:
            raise InputError("generators was given an empty list; name one or more of jepa.masks, e.g. MultiBlock")
        if not 0 <= quantile <= MOST:
            raise InputError(f"quantile was given {quantile}; expected 0 to {MOST}: most draws must be long enough")
        self.collation = check_choice("collation", collation, COLLATIONS)
        self.generators, self.seed, self.quantile = list(generators), seed, quantile
        self._fixed: dict[tuple[int, Grid], tuple[int, int]] = {}  # (K, L) by generator and grid

    def __call__(self, ids: Tensor, grid: Grid) -> list[Mask]:
        """A mask of each generator, on the device of ``ids``.

        Args:
            ids: int64 [B], or [B,E] of several numbers; what tells a sample from all others of all ranks and epochs,
                such as (epoch, number of the clip)
            grid: steps, rows and columns of the clips' tokens

        Raises InputError where the blocks leave no context.
        """
        assert ids.ndim in (1, 2) and ids.dtype == torch.int64, f"ids int64 [B] or [B,E], not {ids.dtype} {ids.shape}"
        key = np.full(len(ids), self.seed & WORD, dtype=np.uint64)
        for column in ids.reshape(len(ids), -1).cpu().numpy().T:
            key = fold(key, column)
        masks = (self._mask(number, fold(key, number), tuple(grid)) for number in range(len(self.generators)))
        return [mask.to(ids.device) for mask in masks]

    def lengths(self, grid: Grid, batch: int = 1) -> list[tuple[int, int]]:
        """K and L of each generator: tokens of a context, and of each of its ``targets`` target masks.

        Exact for ``random_subset``; the rounded mean over samples for ``packed``, and over batches of ``batch``
        samples for ``legacy``.
        """
        grid = tuple(grid)
        if self.collation == "random_subset":
            return [self._fixed_lengths(number, grid) for number in range(len(self.generators))]
        if self.collation == "packed":
            return [mean_lengths(generator, grid) for generator in self.generators]
        return [legacy_lengths(generator, grid, batch) for generator in self.generators]

    def _mask(self, number: int, key: Array, grid: Grid) -> Mask:
        generator, blocks = self.generators[number], fold(key, 0)
        if self.collation == "packed":
            return _packed(*draw(generator, blocks, grid))
        if self.collation == "legacy":
            return _legacy(*draw(generator, blocks, grid, legacy=True))
        lengths = self._fixed_lengths(number, grid)
        return _random_subset(*draw(generator, blocks, grid, least=lengths), lengths, fold(key, 1))

    def _fixed_lengths(self, number: int, grid: Grid) -> tuple[int, int]:
        if (number, grid) not in self._fixed:
            self._fixed[number, grid] = fixed_lengths(self.generators[number], grid, self.quantile)
        return self._fixed[number, grid]


def _random_subset(context: Array, target: Array, lengths: tuple[int, int], key: Array) -> Mask:
    ranks = order(key, target.shape[2])
    context = choose(context, lengths[0], ranks)
    rows = choose(_rows(target), lengths[1], ranks.repeat(target.shape[1], axis=0))
    return Mask(_places(context), _places(rows).unflatten(0, target.shape[:2]))


def _legacy(context: Array, target: Array) -> Mask:
    rows = _rows(target)
    context, rows = first(context, context.sum(1).min()), first(rows, rows.sum(1).min())
    return Mask(_places(context), _places(rows).unflatten(0, target.shape[:2]))


def _packed(context: Array, target: Array) -> Mask:
    rows, seen = _rows(target), context.sum(1)
    longest = int(seen.max()), int((seen + target.sum(2).max(1)).max())
    return Mask(_tokens(context), _tokens(rows), _offsets(context), _offsets(rows), longest)


def _rows(target: Array) -> Array:
    """Targets [B,M,N], a row each: [B*M,N]."""
    return target.reshape(-1, target.shape[2])


def _tokens(rows: Array) -> Tensor:
    """The true places of rows [R,N], end to end: int64 [sum]."""
    return torch.from_numpy(np.flatnonzero(rows) % rows.shape[1])


def _places(rows: Array) -> Tensor:
    """Rows [R,N] with K true each -> int64 [R,K]."""
    starts = np.arange(len(rows))[:, None] * rows.shape[1]
    return torch.from_numpy(np.flatnonzero(rows).reshape(len(rows), -1) - starts)


def _offsets(rows: Array) -> Tensor:
    return torch.from_numpy(np.append(0, rows.sum(1).cumsum()).astype(np.int32))
