"""Masks of the masked models: 2-D blocks (I-JEPA), tubes and 3-D multi-block masks (V-JEPA), for whole batches at once.

A generator draws, for every sample, the tokens of the context and of M targets. :class:`Masks` seeds it by
(seed, sample id), so that ranks differ and runs repeat, and collates the rows, whose lengths differ:

* ``random_subset`` cuts each row to the batch's shortest by a random choice: every frame keeps its share of tokens.
  Of a batch, only the length is felt: a longer row of the same sample holds the shorter.
* ``packed`` cuts nothing: rows of different lengths, end to end, and each a function of (seed, sample id) alone.
* ``legacy`` is the published way: the first tokens in raster order are kept, so that the context lies in the early
  frames (the top rows of an image) and shrinks there as the batch grows; one block size for the whole batch; and 2-D
  blocks never reach the last row and column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import InputError, check_choice
from jepa.schema import Mask

ATTEMPTS = 100  # draws of one sample until its context is large enough
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # increment and multipliers of SplitMix64, as signed numbers
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
SIZE, PLACE, CONTEXT_SIZE, CONTEXT_PLACE = range(4)  # what a number is drawn for

Grid = tuple[int, int, int]  # steps, rows, columns of a clip's tokens; an image has one step
Range = tuple[float, float]


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """New keys from int64 keys and what tells them apart: a hash, by the mixer of SplitMix64 (Steele et al. 2014).

    It works element by element, so that the randomness of a sample is a function of its own key; for one key,
    different values always give different keys.
    """
    return _mix(key ^ _mix((torch.as_tensor(value, device=key.device) + 1) * GOLDEN))


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, count: int) -> Tensor:
    """To the right, filling with zeros; int64 would fill with the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def uniform(key: Tensor, *shape: int) -> Tensor:
    """Keys [B] to float64 [B,*shape] in [0, 1)."""
    bits = fold(key[:, None], torch.arange(math.prod(shape), device=key.device))
    return (_shift(bits, 11).double() * 2.0**-53).view(-1, *shape)


@dataclass(frozen=True)
class Chance:
    """The randomness of B samples."""

    key: Tensor  # int64 [B]
    size_key: Tensor  # int64 [B]: sizes of blocks come from here; legacy: the same number for the whole batch
    legacy: bool = False

    def size(self, purpose: int) -> Tensor:
        """float64 [B,3]: one number each for the length in time, the area and the aspect ratio."""
        return uniform(fold(self.size_key, purpose), 3)

    def place(self, purpose: int, count: int) -> Tensor:
        """float64 [B,count,3]: one number for each axis of each block."""
        return uniform(fold(self.key, purpose), count, 3)


class MaskGenerator(Protocol):
    """What draws masks. A sample is drawn again until its context has more than ``min_keep`` tokens."""

    min_keep: int

    def draw(self, chance: Chance, grid: Grid) -> tuple[Tensor, Tensor]:
        """Context bool [B,N] and targets bool [B,M,N] over the N tokens of the grid, disjoint within a sample."""


class Blocks:
    """I-JEPA (Assran et al. 2023): target blocks that are forecast one by one, from a large block that lacks them.

    On video, blocks reach through all steps. Tokens outside of all blocks are neither context nor target.

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

    def draw(self, chance: Chance, grid: Grid) -> tuple[Tensor, Tensor]:
        """Context [B,N], targets [B,M,N]."""
        # published: blocks are smaller than the grid, and start before the last place where they would fit
        spare = 1 if chance.legacy else 0
        if min(grid[1:]) <= spare:
            raise InputError(f"legacy block masks need 2 rows and columns of tokens or more, were given a grid {grid}")
        size = _sizes(self._number(chance, SIZE), grid, self.scale, self.aspect, spare)
        target = _blocks(size, chance.place(PLACE, self.targets), grid, spare)
        size = _sizes(self._number(chance, CONTEXT_SIZE), grid, self.context_scale, self.context_aspect, spare)
        context = _blocks(size, chance.place(CONTEXT_PLACE, 1), grid, spare)[:, 0]
        return context & ~_union(target), target

    @staticmethod
    def _number(chance: Chance, purpose: int) -> Tensor:
        number = chance.size(purpose)
        # published: one number for both, so that the largest blocks are always the tallest
        return number[:, [0, 1, 1]] if chance.legacy else number


class MultiBlock:
    """V-JEPA (Bardes et al. 2024): the union of blocks is the one target, everything else the context.

    The published pair is 8 blocks of scale 0.15 (short-range) beside 2 blocks of scale 0.7 (long-range).

    Args:
        blocks: blocks of a sample, all of one size
        scale: smallest and largest share of a step's tokens in a block
        temporal: smallest and largest share of the steps that a block lasts
        aspect: smallest and largest height / width of a block
        min_keep: a context has more tokens than this
    """

    def __init__(
        self,
        blocks: int = 8,
        scale: Range = (0.15, 0.15),
        temporal: Range = (1.0, 1.0),
        aspect: Range = (0.75, 1.5),
        min_keep: int = 0,
    ) -> None:
        _check_count("blocks", blocks)
        _check_ranges(scale=scale, temporal=temporal)
        _check_ranges(aspect=aspect, most=math.inf)
        self.blocks, self.scale, self.temporal, self.aspect, self.min_keep = blocks, scale, temporal, aspect, min_keep

    def draw(self, chance: Chance, grid: Grid) -> tuple[Tensor, Tensor]:
        """Context [B,N], target [B,1,N]; together all tokens."""
        size = _sizes(chance.size(SIZE), grid, self.scale, self.aspect, temporal=self.temporal)
        target = _union(_blocks(size, chance.place(PLACE, self.blocks), grid))
        return ~target, target[:, None]


class Tubes:
    """Random tubes: the context is a random choice of places, the same in all steps; the target everything else.

    Args:
        ratio: share of the places that are targets; the context has the rest, rounded down
    """

    def __init__(self, ratio: float = 0.9) -> None:
        if not 0 < ratio < 1:
            raise InputError(f"ratio was given {ratio}; expected the share of places that are hidden, between 0 and 1")
        self.ratio, self.min_keep = ratio, 0

    def draw(self, chance: Chance, grid: Grid) -> tuple[Tensor, Tensor]:
        """Context [B,N], target [B,1,N]; together all tokens."""
        steps, places = grid[0], grid[1] * grid[2]
        kept = math.floor(places * (1 - self.ratio))
        if not kept:
            raise InputError(f"tubes of ratio {self.ratio} leave no context on a grid {grid}; give a smaller ratio")
        everywhere = torch.ones(len(chance.key), places, dtype=torch.bool, device=chance.key.device)
        context = _choose(everywhere, kept, _order(fold(chance.key, PLACE), places)).repeat(1, steps)
        return context, ~context[:, None]


class Masks:
    """Draws one mask per generator for every sample of a batch.

    Args:
        generators: what draws; the model meets each clip once under every mask
        collation: how rows of different lengths become tensors: ``random_subset`` is unbiased at any batch size,
            ``packed`` keeps every token, ``legacy`` keeps the first ones, as published
        seed: seed of the masks
    """

    def __init__(
        self,
        generators: Sequence[MaskGenerator],
        collation: Literal["random_subset", "packed", "legacy"] = "random_subset",
        seed: int = 0,
    ) -> None:
        if not generators:
            raise InputError("generators was given an empty list; name one or more of jepa.masks, e.g. MultiBlock")
        check_choice("collation", collation, _COLLATIONS)
        self.generators, self.collation, self.seed = list(generators), collation, seed

    def __call__(self, ids: Tensor, grid: Grid) -> list[Mask]:
        """A mask of each generator, on the device of ``ids``.

        Args:
            ids: int64 [B], or [B,E] of several numbers; what tells a sample from all others of all ranks and epochs,
                such as (epoch, number of the clip)
            grid: steps, rows and columns of the clips' tokens

        Raises InputError where the blocks leave no context.
        """
        assert ids.ndim in (1, 2) and ids.dtype == torch.int64, f"ids int64 [B] or [B,E], not {ids.dtype} {ids.shape}"
        columns = ids.reshape(len(ids), -1).unbind(1)
        key = torch.full_like(columns[0], self.seed)
        for column in columns:
            key = fold(key, column)
        return [self._mask(generator, fold(key, number), grid) for number, generator in enumerate(self.generators)]

    def _mask(self, generator: MaskGenerator, key: Tensor, grid: Grid) -> Mask:
        context, target = _draw(generator, fold(key, 0), grid, self.collation == "legacy")
        return _COLLATIONS[self.collation](context, target, fold(key, 1))


def _draw(generator: MaskGenerator, key: Tensor, grid: Grid, legacy: bool) -> tuple[Tensor, Tensor]:
    """Of every sample the first draw that leaves enough context: bool [B,N] and [B,M,N]."""
    rows = torch.arange(len(key), device=key.device)
    batch_key = fold(key[:1], ATTEMPTS).expand_as(key)
    for attempt in range(ATTEMPTS):
        own = fold(key[rows], attempt)
        drawn = generator.draw(Chance(own, batch_key[rows] if legacy else own, legacy), grid)
        if not attempt:
            context, target = drawn
        else:
            context[rows], target[rows] = drawn
        rows = (context.sum(1) <= generator.min_keep).nonzero()[:, 0]
        if not len(rows):
            return context, target
    raise InputError(
        f"{type(generator).__name__} left a context of {generator.min_keep} tokens or fewer in {ATTEMPTS} draws on a "
        f"grid {grid}; give fewer or smaller blocks, a smaller min_keep or a larger grid"
    )


def _sizes(
    number: Tensor, grid: Grid, scale: Range, aspect: Range, spare: int = 0, temporal: Range = (1.0, 1.0)
) -> Tensor:
    """Numbers [B,3] of [0, 1) to steps, rows and columns of a block, int64 [B,3]."""
    ranges = zip(number.unbind(1), (temporal, scale, aspect))
    length, share, ratio = (low + u * (high - low) for u, (low, high) in ranges)
    area = (grid[1] * grid[2] * share).floor()
    steps = (grid[0] * length).floor().clamp(1, grid[0])
    rows = (area * ratio).sqrt().round().clamp(1, grid[1] - spare)
    columns = (area / ratio).sqrt().round().clamp(1, grid[2] - spare)
    return torch.stack([steps, rows, columns], dim=1).long()


def _blocks(size: Tensor, place: Tensor, grid: Grid, spare: int = 0) -> Tensor:
    """Sizes [B,3] and places [B,n,3] in [0, 1) to what the blocks cover, bool [B,n,N].

    Every start from 0 to the last that fits is as likely as the others; ``spare`` rows and columns are left out.
    """
    axes = []
    for axis, length in enumerate(grid):
        extent = size[:, axis, None]
        first = (place[..., axis] * (length - extent + 1 - (spare if axis else 0))).long()
        at = torch.arange(length, device=size.device)
        axes.append((at >= first[..., None]) & (at < (first + extent)[..., None]))
    steps, rows, columns = axes
    return (steps[..., None, None] & rows[..., None, :, None] & columns[..., None, None, :]).flatten(2)


def _union(blocks: Tensor) -> Tensor:
    """[B,n,N] -> [B,N]; not ``any``, which takes many times as long over bools on the CPU (torch 2.14)."""
    return blocks.amax(1)


def _order(key: Tensor, count: int) -> Tensor:
    """A random order of ``count`` tokens for each key [B]: int64 [B,count], of which no two are equal."""
    return fold(key[:, None], torch.arange(count, device=key.device))


def _choose(chosen: Tensor, count: int, order: Tensor) -> Tensor:
    """Of every row [R,N], the ``count`` chosen tokens that come first in the order [R,N]."""
    order = order.masked_fill(~chosen, torch.iinfo(torch.int64).max)
    return chosen & (order <= order.kthvalue(count, dim=1, keepdim=True).values)


def _random_subset(context: Tensor, target: Tensor, key: Tensor) -> Mask:
    rows, order = target.flatten(0, 1), _order(key, target.shape[2])
    context = _choose(context, _shortest(context), order)
    rows = _choose(rows, _shortest(rows), order.repeat_interleave(target.shape[1], dim=0))
    return Mask(_places(context), _places(rows).unflatten(0, target.shape[:2]))


def _legacy(context: Tensor, target: Tensor, key: Tensor) -> Mask:
    rows = target.flatten(0, 1)
    context = context & (context.cumsum(1) <= _shortest(context))
    rows = rows & (rows.cumsum(1) <= _shortest(rows))
    return Mask(_places(context), _places(rows).unflatten(0, target.shape[:2]))


def _packed(context: Tensor, target: Tensor, key: Tensor) -> Mask:
    rows = target.flatten(0, 1)
    return Mask(context.nonzero()[:, 1], rows.nonzero()[:, 1], _offsets(context), _offsets(rows))


_COLLATIONS = {"random_subset": _random_subset, "packed": _packed, "legacy": _legacy}


def _shortest(rows: Tensor) -> int:
    return int(rows.sum(1).min())


def _places(rows: Tensor) -> Tensor:
    """Rows [R,N] with K true each -> int64 [R,K]."""
    return rows.nonzero()[:, 1].view(len(rows), -1)


def _offsets(rows: Tensor) -> Tensor:
    return F.pad(rows.sum(1).cumsum(0), (1, 0)).int()


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} was given {value}; expected 1 or more")


def _check_ranges(most: float = 1.0, **ranges: Range) -> None:
    for name, (low, high) in ranges.items():
        if not 0 < low <= high <= most:
            raise InputError(f"{name} was given ({low}, {high}); expected smallest and largest, above 0 up to {most}")
