"""The grid that a stored table of sine-cosine positions was made for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jepa.models.positions import Form, Grid

NEAR = 4e-3  # bfloat16 rounds sines by 2e-3; those of different places of a grid are further apart


def grid_of(table: Tensor, form: Form) -> Grid | None:
    """Tubelets, rows and columns of a table ``[tokens, width]``; None where it is no table of that form.

    The first dimension of each axis is the sine of the whole number that the place is.
    """
    tokens, width = table.shape
    third = 2 * -(-width // 6)
    starts = {"sincos_2d": (0, width // 2), "sincos": (0, width // 2, 3 * width // 4)}.get(form, (0, third, 2 * third))
    if starts[-1] >= width:
        return None
    sines, index = table[:, list(starts)].double(), torch.arange(tokens, dtype=torch.float64)
    for time, rows, columns in _grids(tokens):
        if form == "sincos_2d" and time > 1:
            continue
        places = (index // (rows * columns), index // columns % rows, index % columns)
        made = torch.stack(places[-len(starts) :], dim=1).sin()
        if (made - sines).abs().max() < NEAR:
            return time, rows, columns
    return None


def _grids(tokens: int) -> Iterator[Grid]:
    def divisors(number: int) -> list[int]:
        return [part for part in range(1, number + 1) if number % part == 0]

    for time in divisors(tokens):
        for rows in divisors(tokens // time):
            yield time, rows, tokens // time // rows
