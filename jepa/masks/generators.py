"""What draws masks: 2-D blocks (I-JEPA), 3-D multi-blocks (V-JEPA) and tubes, for whole batches at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jepa.errors import InputError
from jepa.masks.random import Array, choose, first, fold, order, uniform

SIZE, PLACE, CONTEXT_SIZE, CONTEXT_PLACE, KEEP = range(5)  # what a number is drawn for

Grid = tuple[int, int, int]  # steps, rows, columns of a clip's tokens; an image has one step
Range = tuple[float, float]


@dataclass(frozen=True)
class Chance:
    """The randomness of B samples."""

    key: Array  # uint64 [B]
    size_key: Array  # uint64 [B]: sizes of blocks come from here; legacy: the same number for the whole batch
    legacy: bool = False
    relaxed: int = 0  # legacy: target blocks, the last ones, that a context need not avoid

    def size(self, purpose: int) -> Array:
        """float64 [B,3]: one number each for the length in time, the area and the aspect ratio."""
        return uniform(fold(self.size_key, purpose), 3)

    def place(self, purpose: int, count: int) -> Array:
        """float64 [B,count,3]: one number for each axis of each block."""
        return uniform(fold(self.key, purpose), count, 3)


class MaskGenerator(Protocol):
    """What draws masks. A sample is drawn again until its context has more than ``min_keep`` tokens."""

    targets: int  # M, target masks of a sample
    min_keep: int

    def draw(self, chance: Chance, grid: Grid) -> tuple[Array, Array]:
        """Context bool [B,N] and targets bool [B,M,N] over the N tokens of the grid, disjoint within a sample but for
        targets that a relaxed context need not avoid."""


class Blocks:
    """I-JEPA (Assran et al. 2023): target blocks that are forecast one by one, from a large block that lacks them.

    On video, blocks reach through all steps. Tokens outside of all blocks are neither context nor target. Under the
    collation ``legacy``, as published, a context that is too small in 20 draws need no longer avoid the last target
    block, after 20 more the last two, and so on: such a context shows what is asked.

    Args:
        targets: M, target blocks of a sample
        scale: smallest and largest share of a step's tokens in a target block
        aspect: smallest and largest height / width of a target block
        context_scale: the same share for the context block, before the targets are taken out
        context_aspect: height / width of the context block
        min_keep: a context has more tokens than this
    """

    def __init__(
        self,
        targets: int = 4,
        scale: Range = (0.15, 0.2),
        aspect: Range = (0.75, 1.5),
        context_scale: Range = (0.85, 1.0),
        context_aspect: Range = (1.0, 1.0),
        min_keep: int = 10,
    ) -> None:
        _check_count("targets", targets)
        _check_ranges(scale=scale, context_scale=context_scale)
        _check_ranges(aspect=aspect, context_aspect=context_aspect, most=math.inf)
        self.targets, self.scale, self.aspect = targets, scale, aspect
        self.context_scale, self.context_aspect, self.min_keep = context_scale, context_aspect, min_keep

    def draw(self, chance: Chance, grid: Grid) -> tuple[Array, Array]:
        """Context [B,N], targets [B,M,N]."""
        # published: blocks are smaller than the grid, and start before the last place where they would fit
        spare = 1 if chance.legacy else 0
        if min(grid[1:]) <= spare:
            raise InputError(f"legacy block masks need 2 rows and columns of tokens or more, were given a grid {grid}")
        size = _sizes(self._number(chance, SIZE), grid, self.scale, self.aspect, spare)
        target = _blocks(size, chance.place(PLACE, self.targets), grid, spare)
        size = _sizes(self._number(chance, CONTEXT_SIZE), grid, self.context_scale, self.context_aspect, spare)
        context = _blocks(size, chance.place(CONTEXT_PLACE, 1), grid, spare)[:, 0]
        avoided = target[:, : max(0, self.targets - chance.relaxed)]
        return context & ~avoided.any(1), target

    @staticmethod
    def _number(chance: Chance, purpose: int) -> Array:
        number = chance.size(purpose)
        # published: one number for both, so that the largest blocks are always the tallest
        return number[:, [0, 1, 1]] if chance.legacy else number


class MultiBlock:
    """V-JEPA (Bardes et al. 2024): the union of blocks is the one target, everything else the context.

    The published pair is 8 blocks of scale 0.15 (short-range) beside 2 blocks of scale 0.7 (long-range). A block that
    lasts only some of the steps starts at any of them and goes on at the first step where it reaches past the last,
    so that every step is hidden equally often. Under the collation ``legacy`` it starts where it fits, as published,
    which hides the middle of a clip more often than its ends.

    Args:
        blocks: blocks of a sample, all of one size
        scale: smallest and largest share of a step's tokens in a block
        temporal: smallest and largest share of the steps that a block lasts
        aspect: smallest and largest height / width of a block
        min_keep: a context has more tokens than this
        max_keep: a context has at most this many tokens, a random choice of what the blocks leave (``legacy``: the
            first ones); the others are neither context nor target. None keeps all
        max_temporal_keep: the context lies in this share of the steps, the first ones, rounded down; later steps are
            targets as a whole, so that the model must forecast
    """

    targets = 1

    def __init__(
        self,
        blocks: int = 8,
        scale: Range = (0.15, 0.15),
        temporal: Range = (1.0, 1.0),
        aspect: Range = (0.75, 1.5),
        min_keep: int = 0,
        max_keep: int | None = None,
        max_temporal_keep: float = 1.0,
    ) -> None:
        _check_count("blocks", blocks)
        _check_ranges(scale=scale, temporal=temporal)
        _check_ranges(aspect=aspect, most=math.inf)
        if max_keep is not None and max_keep <= max(min_keep, 0):
            raise InputError(f"max_keep was given {max_keep}; expected more than min_keep, which is {min_keep}")
        if not 0 < max_temporal_keep <= 1:
            raise InputError(f"max_temporal_keep was given {max_temporal_keep}; expected a share above 0 up to 1")
        self.blocks, self.scale, self.temporal, self.aspect = blocks, scale, temporal, aspect
        self.min_keep, self.max_keep, self.max_temporal_keep = min_keep, max_keep, max_temporal_keep

    def draw(self, chance: Chance, grid: Grid) -> tuple[Array, Array]:
        """Context [B,N], target [B,1,N]; together all tokens, but for those that ``max_keep`` leaves out."""
        size = _sizes(chance.size(SIZE), grid, self.scale, self.aspect, temporal=self.temporal)
        target = _blocks(size, chance.place(PLACE, self.blocks), grid, round_the_end=not chance.legacy).any(1)
        visible = max(1, int(grid[0] * self.max_temporal_keep)) * grid[1] * grid[2]
        target[:, visible:] = True
        return self._capped(~target, chance), target[:, None]

    def _capped(self, context: Array, chance: Chance) -> Array:
        if self.max_keep is None or self.max_keep >= context.shape[1]:
            return context
        if chance.legacy:
            return first(context, self.max_keep)
        return choose(context, self.max_keep, order(fold(chance.key, KEEP), context.shape[1]))


class Tubes:
    """Random tubes: the context is a random choice of places, the same in all steps; the target everything else.

    The published rule is ``floor(places * (1 - ratio))`` in floating-point numbers, and so is this one: where the
    product is a whole number but for rounding, the context may have one place less (9 of 100 at a ratio of 0.9).

    Args:
        ratio: share of the places that are targets; the context has the rest, rounded down
    """

    targets = 1

    def __init__(self, ratio: float = 0.9) -> None:
        if not 0 < ratio < 1:
            raise InputError(f"ratio was given {ratio}; expected the share of places that are hidden, between 0 and 1")
        self.ratio, self.min_keep = ratio, 0

    def draw(self, chance: Chance, grid: Grid) -> tuple[Array, Array]:
        """Context [B,N], target [B,1,N]; together all tokens."""
        steps, places = grid[0], grid[1] * grid[2]
        kept = math.floor(places * (1 - self.ratio))
        if not kept:
            raise InputError(f"tubes of ratio {self.ratio} leave no context on a grid {grid}; give a smaller ratio")
        everywhere = np.ones((len(chance.key), places), dtype=bool)
        context = np.tile(choose(everywhere, kept, order(fold(chance.key, PLACE), places)), steps)
        return context, ~context[:, None]


def _sizes(
    number: Array, grid: Grid, scale: Range, aspect: Range, spare: int = 0, temporal: Range = (1.0, 1.0)
) -> Array:
    """Numbers [B,3] of [0, 1) to steps, rows and columns of a block, int64 [B,3]."""
    length, share, ratio = (low + u * (high - low) for u, (low, high) in zip(number.T, (temporal, scale, aspect)))
    area = np.floor(grid[1] * grid[2] * share)
    steps = np.floor(grid[0] * length).clip(1, grid[0])
    rows = np.sqrt(area * ratio).round().clip(1, grid[1] - spare)
    columns = np.sqrt(area / ratio).round().clip(1, grid[2] - spare)
    return np.stack([steps, rows, columns], axis=1).astype(np.int64)


def _blocks(size: Array, place: Array, grid: Grid, spare: int = 0, round_the_end: bool = False) -> Array:
    """Sizes [B,3] and places [B,n,3] in [0, 1) to what the blocks cover, bool [B,n,N].

    Every start from 0 to the last that fits is as likely as the others; ``spare`` rows and columns are left out. With
    ``round_the_end`` every step is a start, and a block goes on at the first step after the last.
    """
    axes = []
    for axis, length in enumerate(grid):
        extent = size[:, axis, None]
        starts = length if round_the_end and not axis else length - extent + 1 - (spare if axis else 0)
        begin = (place[..., axis] * starts).astype(np.int64)
        past = (np.arange(length) - begin[..., None]) % length
        axes.append(past < extent[..., None])
    steps, rows, columns = axes
    places = (rows[..., None] & columns[..., None, :]).reshape(*rows.shape[:2], 1, -1)
    return (steps[..., None] & places).reshape(*place.shape[:2], -1)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} was given {value}; expected 1 or more")


def _check_ranges(most: float = 1.0, **ranges: Range) -> None:
    for name, (low, high) in ranges.items():
        if not 0 < low <= high <= most:
            raise InputError(f"{name} was given ({low}, {high}); expected smallest and largest, above 0 up to {most}")
