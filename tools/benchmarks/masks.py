"""How long it takes to draw the masks of a batch, for every collation."""

from __future__ import annotations

from pathlib import Path

import torch

from jepa.errors import InputError
from jepa.masks import Masks
from tools.benchmarks import measure
from tools.benchmarks.step import generators

COLLATIONS = ("random_subset", "packed", "legacy")


def masks(
    batch: int = 24,
    grid: tuple[int, int, int] = (8, 16, 16),
    threads: int = 1,
    repeats: int = 51,
    out: Path | None = None,
) -> str:
    """Measure the drawing of V-JEPA's 8 + 2 block masks for a batch.

    Args:
        batch: clips
        grid: steps, rows and columns of the tokens of a clip
        threads: of torch
        repeats: measured batches of each collation
        out: a JSON file to write
    """
    if batch < 1 or repeats < 2:
        raise InputError(f"batch={batch} and repeats={repeats}: expected at least 1 clip and 2 repetitions")
    drawing = {name: Masks(generators(), name) for name in COLLATIONS}

    def way(name: str):
        return lambda number: drawing[name](torch.arange(number * batch, (number + 1) * batch), grid)

    with measure.threads(threads):
        times = measure.interleaved({name: way(name) for name in COLLATIONS}, repeats)
        seconds = {name: measure.summary(time.wall) for name, time in times.items()}
        measure.write(out, {"benchmark": "masks", "batch": batch, "seconds": seconds, "about": measure.about()})
    lines = [measure.told(name, value, "ms", 1e3) for name, value in seconds.items()]
    return measure.table(f"masks of a batch of {batch}, grid {' x '.join(map(str, grid))}", lines)
