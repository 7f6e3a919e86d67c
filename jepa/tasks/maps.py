"""Maps on the grid of the tokens: the label of most pixels of a token, or the mean of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.errors import InputError

IGNORE = 255  # of classes; of values, NaN


def token_maps(maps: Tensor, steps: int, grid: tuple[int, int]) -> Tensor:
    """Labels of pixels ``[n,T,h,w]`` to labels of tokens ``[n,steps*rows*columns]``.

    Of classes (uint8) the most common one, the lowest of several; pixels of 255 are left out, and a token that has no
    others gets 255. Of values (float32) the mean of those that are finite, NaN where none is.
    """
    parts = maps.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1)).unflatten(1, (steps, -1))
    parts = parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)  # [n,tokens,pixels of a token]
    if maps.dtype != torch.uint8:
        return torch.where(parts.isfinite(), parts, torch.nan).nanmean(2)
    count = torch.zeros(*parts.shape[:2], 256, dtype=torch.int32)
    count.scatter_add_(2, parts.long(), torch.ones_like(parts, dtype=torch.int32))
    known, most = count[..., :IGNORE].max(2)
    return torch.where(known > 0, most, IGNORE).to(torch.uint8)


def gridded(columns: Mapping[str, np.ndarray], shape: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The columns of a batch with, in place of ``maps`` [n,T,h,w], the labels of its tokens, ``map`` [n,steps*N].

    Args:
        columns: what stands beside the latents.
        shape: what the cache says of these: steps, tokens, grid.

    Raises:
        InputError: the tokens lie in no grid, or pixels cannot be told apart by it.
    """
    columns = dict(columns)
    if (maps := columns.pop("maps", None)) is None:
        return columns
    steps, grid = shape["steps"], shape["grid"]
    if grid is None or grid[0] * grid[1] != shape["tokens"] or any(
        length % parts for length, parts in zip(maps.shape[1:], (steps, *grid))
    ):
        raise InputError(
            f"maps of {list(maps.shape[1:])} (frames, height, width) for latents of {steps} steps of {shape['tokens']} "
            f"tokens in the grid {grid}: expected a grid that divides them; set pool to none, and one layer"
        )
    return columns | {"map": token_maps(torch.from_numpy(maps), steps, tuple(grid)).numpy()}
