"""Where the context of a masked model lies, for each collation of the masks and several batch sizes: one picture.

    python tools/mask_density.py --out runs/mask_density.svg

Prints beside it what the masks keep, and how long they take to draw.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from jsonargparse import auto_cli
from torch import Tensor

from jepa.errors import InputError
from jepa.files import write_atomically
from jepa.masks import COLLATIONS, Blocks, Grid, MaskGenerator, Masks, MultiBlock
from tools.density_picture import Cell, Row, picture

SHORT, LONG = MultiBlock(8, (0.15, 0.15)), MultiBlock(2, (0.7, 0.7))
TIMED = 24  # samples of a batch whose drawing is timed, under the two generators of V-JEPA


@dataclass(frozen=True)
class Recipe:
    """A generator, on what grid it is drawn, and over which axis of it (0 steps, 1 rows) the context is counted."""

    name: str
    note: str
    generator: MaskGenerator
    grid: Grid
    axis: int


@dataclass(frozen=True)
class Density:
    """What the masks of one generator under one collation hold."""

    time: Tensor  # [T] share of the context in each step, times T: 1 is uniform
    rows: Tensor  # [H] the same for rows
    context: float  # share of all tokens
    target: float  # share of all tokens in one target mask


Found = dict[tuple[str, str, int], Density]  # by recipe, collation and batch size


def density(generator: MaskGenerator, collation: str, grid: Grid, batch: int, batches: int, seed: int = 0) -> Density:
    """Draw ``batches`` of masks and count where their tokens are."""
    masks, tokens, samples = Masks([generator], collation, seed), math.prod(grid), batch * batches
    where, target = torch.zeros(tokens), 0.0
    for ids in torch.arange(samples).split(batch):
        (mask,) = masks(ids, grid)
        where += torch.bincount(mask.context.flatten(), minlength=tokens)
        target += mask.target.numel() / (batch * generator.targets)
    volume, context = where.view(grid), where.sum().item()
    return Density(
        time=volume.sum((1, 2)) * grid[0] / context,
        rows=volume.sum((0, 2)) * grid[1] / context,
        context=context / (samples * tokens),
        target=target / (batches * tokens),
    )


def milliseconds(collation: str, grid: Grid, repeats: int = 50) -> tuple[float, float]:
    """Median time of a batch of ``TIMED`` samples under both generators of V-JEPA, in one thread: by the clock and on
    the processor, which agree unless the machine is busy."""
    masks, threads, seconds = Masks([SHORT, LONG], collation), torch.get_num_threads(), []
    torch.set_num_threads(1)
    masks(torch.arange(TIMED), grid)  # the lengths of random_subset are measured once
    for number in range(repeats):
        ids = torch.arange(number * TIMED, (number + 1) * TIMED)
        clock, processor = time.perf_counter(), time.thread_time()
        masks(ids, grid)
        seconds.append((time.perf_counter() - clock, time.thread_time() - processor))
    torch.set_num_threads(threads)
    clock, processor = (1000 * median(column) for column in zip(*seconds))
    return clock, processor


def mask_density(
    out: Path = Path("runs/mask_density.svg"),
    batch_sizes: Sequence[int] = (1, 24, 96),
    samples: int = 960,
    grid: Grid = (8, 16, 16),
    seed: int = 0,
) -> str:
    """Draw masks and a picture of where the context lies.

    Args:
        out: the picture, SVG
        batch_sizes: samples that are collated together; a column of the picture each
        samples: how many are drawn for each curve, rounded up to whole batches
        grid: steps, rows and columns of the tokens of a clip; images have its rows and columns
        seed: seed of the masks
    """
    if samples < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise InputError(f"samples={samples}, batch_sizes={list(batch_sizes)}: expected 1 or more; raise them")
    if out.suffix != ".svg":
        raise InputError(f"out was given {out}; expected a name that ends in .svg")
    found: Found = {
        (recipe.name, collation, batch): density(
            recipe.generator, collation, recipe.grid, batch, math.ceil(samples / batch), seed
        )
        for recipe in _recipes(grid)
        for collation in COLLATIONS
        for batch in batch_sizes
    }
    drawn = [_row(recipe, found, batch_sizes) for recipe in _recipes(grid)]
    heads = [f"batches of {batch}" for batch in batch_sizes]
    text = picture("Where the context lies, relative to the mean", heads, drawn, COLLATIONS)
    write_atomically(out, lambda file: file.write(text.encode()))
    return "\n".join([*(_line(*key, value) for key, value in found.items()), _timed(grid), str(out)])


def _recipes(grid: Grid) -> list[Recipe]:
    image = (1, *grid[1:])
    return [
        Recipe("V-JEPA, short range", "hides 8 blocks of 0.15 of a step", SHORT, grid, 0),
        Recipe("V-JEPA, long range", "hides 2 blocks of 0.7 of a step", LONG, grid, 0),
        Recipe("I-JEPA", "a block less 4 target blocks", Blocks(), image, 1),
    ]


def _row(recipe: Recipe, found: Found, batch_sizes: Sequence[int]) -> Row:
    def cell(batch: int) -> Cell:
        values = [found[recipe.name, collation, batch] for collation in COLLATIONS]
        curves = [(value.rows if recipe.axis else value.time).tolist() for value in values]
        return Cell(curves, list(map(_spread, curves)))

    return Row(recipe.name, recipe.note, "row" if recipe.axis else "step", [cell(batch) for batch in batch_sizes])


def _line(name: str, collation: str, batch: int, value: Density) -> str:
    return (
        f"{name:<20} {collation:<14} batch {batch:<3}  context {value.context:.3f}  target {value.target:.3f}  "
        f"max/min over time {_spread(value.time.tolist())}, over rows {_spread(value.rows.tolist())}"
    )


def _timed(grid: Grid) -> str:
    times = ((collation, *milliseconds(collation, grid)) for collation in COLLATIONS)
    texts = (f"{name} {clock:.1f} ms ({processor:.1f} on the processor)" for name, clock, processor in times)
    return f"a batch of {TIMED}, short- and long-range masks, one thread, median: {', '.join(texts)}"


def _spread(values: Sequence[float]) -> str:
    """Largest over smallest; infinite where nothing is left."""
    return f"{max(values) / min(values):.2f}" if min(values) > 0 else "\u221e"


def main() -> int:
    """Exit code 0, or 2 for wrong input."""
    try:
        sys.stdout.write(f"{auto_cli(mask_density, as_positional=False)}\n")
    except InputError as error:
        sys.stderr.write(f"mask_density: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
