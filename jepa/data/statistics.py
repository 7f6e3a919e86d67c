"""Mean and standard deviation of a column, in one pass over blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

CONSTANT = 1e-6  # a dimension that varies less than this, relative to its size, says nothing and is left unscaled


def moments(blocks: Iterable[np.ndarray], width: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of rows ``[n,width]`` that come in blocks.

    Blocks are merged with the pairwise update of Chan, Golub and LeVeque (1979), which does not cancel as the sum of
    squares does. A constant dimension gets the standard deviation 1: it normalises to 0 and cannot blow up. Without
    any row the result is mean 0 and standard deviation 1.
    """
    count, mean, squares = 0, np.zeros(width), np.zeros(width)
    for block in blocks:
        if not len(block):
            continue
        rows = np.asarray(block, dtype=np.float64)
        shift = rows.mean(axis=0) - mean
        total = count + len(rows)
        squares += ((rows - rows.mean(axis=0)) ** 2).sum(axis=0) + shift**2 * count * len(rows) / total
        mean += shift * len(rows) / total
        count = total
    std = np.sqrt(squares / max(count, 1))
    std[std <= CONSTANT * np.maximum(1.0, np.abs(mean))] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
