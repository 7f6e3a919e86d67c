"""How far each token of a clip is from the nearest of some others."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.models.positions import Grid


def nearest(place: Tensor, rows: int, grid: Grid) -> Tensor:
    """Euclidean distance, in tokens over (step, row, column), of every token to the nearest marked one: [R,N].

    ``place`` int64, of any shape, marks token n of row r as r * N + n. Exact, by one pass per axis (the separable
    transform of Felzenszwalb and Huttenlocher 2012, with a plain minimum over each line, which is short). A row
    without marks is infinitely far from them.
    """
    steps, height, width = grid
    square = torch.full((rows * steps * height * width,), torch.inf, device=place.device)
    square = square.index_fill(0, place.flatten(), 0).view(rows, *grid)
    for axis, side in enumerate(grid, start=1):
        line = torch.arange(side, device=place.device, dtype=torch.float32)
        apart = (line[:, None] - line).square()  # from each cell of a line to each other
        square = (square.movedim(axis, -1).unsqueeze(-2) + apart).amin(-1).movedim(-1, axis)
    return square.sqrt().flatten(1)
