"""Where the context of a masked model lies, over time and over rows, for each collation of the masks: one picture.

    python -m tools.mask_density --batch=24
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor

from jepa.errors import InputError
from jepa.evaluation.report import write_atomically
from jepa.masks import Blocks, Grid, MaskGenerator, Masks, MultiBlock
from tools.report import Curve, Panel
from tools.report.curves import chart
from tools.report.markup import number, paragraph, percent, table, tag
from tools.report.style import STYLE

Recipes = dict[str, tuple[MaskGenerator, str]]  # by name: what draws, and what it draws in words
COLLATIONS = ("legacy", "random_subset", "packed")
VIDEO: Recipes = {
    "V-JEPA, short range": (MultiBlock(8, (0.15, 0.15)), "8 blocks of 0.15 of a step"),
    "V-JEPA, long range": (MultiBlock(2, (0.7, 0.7)), "2 blocks of 0.7 of a step"),
}
IMAGE: Recipes = {"I-JEPA": (Blocks(), "4 target blocks, context of what they leave")}
HEAD = ("Masks", "Context", "Target", "Over time, max / min", "Over rows, max / min")


@dataclass(frozen=True)
class Density:
    """What the masks of one generator under one collation hold."""

    time: Tensor  # [T] share of the context in each step, times T: 1 is uniform
    rows: Tensor  # [H] the same for rows
    context: float  # share of all tokens
    target: float  # share of all tokens in one target mask


Found = dict[tuple[str, str], Density]  # by generator and collation


def density(generator: MaskGenerator, collation: str, grid: Grid, batch: int, batches: int, seed: int = 0) -> Density:
    """Draw ``batches`` of masks and count where their tokens are."""
    masks, tokens, samples = Masks([generator], collation, seed), math.prod(grid), batch * batches
    where, target = torch.zeros(tokens), 0.0
    for ids in torch.arange(samples).split(batch):
        (mask,) = masks(ids, grid)
        where += torch.bincount(mask.context.flatten(), minlength=tokens)
        rows = mask.target[..., 0].numel() if mask.target_offsets is None else len(mask.target_offsets) - 1
        target += mask.target.numel() / rows
    volume, context = where.view(grid), where.sum().item()
    return Density(
        time=volume.sum((1, 2)) * grid[0] / context,
        rows=volume.sum((0, 2)) * grid[1] / context,
        context=context / (samples * tokens),
        target=target / (batches * tokens),
    )


def mask_density(
    out: Path = Path("runs/mask_density.html"),
    batch: int = 24,
    batches: int = 100,
    grid: Grid = (8, 16, 16),
    seed: int = 0,
) -> str:
    """Draw masks and write a page that shows where the context lies.

    Args:
        out: the page, HTML without references to anything outside
        batch: samples that are collated together
        batches: how many are drawn
        grid: steps, rows and columns of the tokens of a clip; images have its rows and columns
        seed: seed of the masks
    """
    if batch < 1 or batches < 1:
        raise InputError(f"batch and batches were given {batch} and {batches}; expected 1 or more")
    found = {
        (name, collation): density(generator, collation, size, batch, batches, seed)
        for recipes, size in ((VIDEO, grid), (IMAGE, (1, *grid[1:])))
        for name, (generator, _) in recipes.items()
        for collation in COLLATIONS
    }
    document = page(found, f"{batches} batches of {batch}, grid {' x '.join(map(str, grid))}")
    write_atomically(out, lambda file: file.write(document.encode()))
    return "\n".join([*(_line(*key, value) for key, value in found.items()), str(out)])


def page(found: Found, drawn: str) -> str:
    """The whole document."""
    title = "Where the context lies"
    summary = (
        "Rows of different lengths must be cut to make a batch. Legacy keeps the first tokens, so the context falls "
        "into the early steps and the top rows; a random subset keeps the shape that the blocks leave; packed cuts "
        f"nothing, and mostly hides behind the random subset. Drawn: {drawn}."
    )
    time = _section("Over time", "Context of each step, relative to the mean step.", _charts(found, VIDEO, "time"))
    edges = (
        "Context of each row, relative to the mean row. Blocks cover the middle more often than the edges, so that "
        "without any cut the context is denser there."
    )
    rows = _section("Over rows", edges, _charts(found, VIDEO | IMAGE, "rows"))
    lines = [_row(name, collation, value) for (name, collation), value in found.items()]
    numbers = tag("section", tag("h2", "Numbers"), table("Shares of all tokens, mean over the samples", HEAD, lines))
    body = tag("header", tag("h1", title), paragraph(summary, "summary")) + tag("main", time, rows, numbers)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">{tag("title", title)}<style>{STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _section(name: str, read: str, charts: list[str]) -> str:
    return tag("section", tag("h2", name), paragraph(read, "read"), tag("div", *charts, class_="charts"))


def _charts(found: Found, recipes: Recipes, axis: str) -> list[str]:
    def curve(name: str, collation: str) -> Curve:
        values = getattr(found[name, collation], axis)
        return Curve(collation, range(len(values)), values)

    return [
        chart(
            Panel(
                name,
                [curve(name, collation) for collation in COLLATIONS],
                note=f"{note}; the numbers are those of the last {'step' if axis == 'time' else 'row'}",
                reference=1.0,
                reference_name="uniform",
            )
        )
        for name, (_, note) in recipes.items()
    ]


def _row(name: str, collation: str, value: Density) -> Sequence[str]:
    head = f"{escape(name)} <small>{escape(collation)}</small>"
    shares = (number(share, percent) for share in (value.context, value.target))
    return head, *shares, *(number(_spread(part)) for part in (value.time, value.rows))


def _line(name: str, collation: str, value: Density) -> str:
    return (
        f"{name:<20} {collation:<14} context {value.context:.3f}  target {value.target:.3f}  "
        f"max/min over time {_spread(value.time):.3f}, over rows {_spread(value.rows):.3f}"
    )


def _spread(values: Tensor) -> float:
    """Largest over smallest; infinite where nothing is left."""
    return (values.max() / values.min()).item()


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
