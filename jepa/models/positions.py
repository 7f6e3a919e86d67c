"""Where a token is: rotary indices for time, rotary or sine-cosine positions on grids of patches and of tubelets.

Grids are ``(t, h, w)``; a token's index is its place in raster order, ``(t * rows + row) * columns + column``.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_choice
from jepa.models.layers import Rotate

Grid = tuple[int, int, int]
Table = tuple[Tensor, Tensor]  # cosines and sines
Form = Literal["sincos_2d", "sincos", "sincos_uniform", "rotary_tiled", "rotary_interleaved"]


def rotary_table(time: Tensor, head: int, base: float = 10000.0) -> Table:
    """Cosines and sines ``[L, head/2]`` of rotary embedding (Su et al. 2021) at integer times ``[L]``.

    Always float32: in bfloat16 the angles of late frames are wrong by hundredths of a radian.
    """
    omega = base ** (-torch.arange(0, head, 2, device=time.device, dtype=torch.float32) / head)
    angle = time.float()[:, None] * omega
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: Table) -> Tensor:
    """Turn adjacent pairs of ``x [...,L,head]`` by the table's angles ``[L, head/2]``."""
    cos, sin = (t.to(x.dtype) for t in table)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rotary_table_3d(index: Tensor, grid: Grid, head: int, tiled: bool) -> Table:
    """Cosines and signed sines ``[..., n]`` of the rotary positions of V-JEPA 2 for token indices ``[...]``.

    Time, row and column turn ``2 * floor(floor(head/3) / 2)`` dimensions each, in this order; what is left of an even
    head is padded with the identity, so that n = head. Interleaved, both dimensions of the adjacent pair i turn by
    position * 10000^(-2i/d), as in V-JEPA 2.1. Tiled, dimension j turns by frequency j mod d/2, whatever its pair: no
    rotation, but what the released weights of V-JEPA 2 were trained with. Always float32, as :func:`rotary_table`.
    """
    width = 2 * (head // 3 // 2)
    axes = (index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2])
    cos, sin = [], []
    for axis in axes:
        for part, table in zip((cos, sin), rotary_table(axis.flatten(), width)):
            part.append(table.repeat(1, 2) if tiled else table.repeat_interleave(2, dim=1))
    rest = (head - head % 2) - 3 * width
    cos.append(cos[0].new_ones(index.numel(), rest))
    sin.append(sin[0].new_zeros(index.numel(), rest))
    sign = sin[0].new_tensor([-1.0, 1.0]).repeat((3 * width + rest) // 2)
    return torch.cat(cos, 1).unflatten(0, index.shape), (torch.cat(sin, 1) * sign).unflatten(0, index.shape)


def rotate_3d(x: Tensor, table: Table) -> Tensor:
    """``x [...,L,head]`` with every pair (a, b) turned to (a cos - b sin, b cos + a sin).

    The table holds an angle per dimension, ``[...,L,n]``, with the sine of each pair's first dimension negated; the
    last dimension of an odd head stays as it is.
    """
    cos, sin = (t.to(x.dtype) for t in table)
    turning, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    swapped = turning.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(turning * cos, swapped, sin)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def _sincos(position: Tensor, width: int) -> Tensor:
    """Sines, then cosines, ``[L, width]`` of float64 positions ``[L]``."""
    omega = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = position[:, None] * omega
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def _axes(sides: tuple[int, ...]) -> list[Tensor]:
    """The coordinates of every cell in raster order, one float64 ``[L]`` per axis."""
    ranges = [torch.arange(side, dtype=torch.float64) for side in sides]
    return [axis.flatten() for axis in torch.meshgrid(*ranges, indexing="ij")]


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed embedding ``[h*w, width]``: the first half encodes the row, the second the column (each sine | cosine)."""
    if width % 4:
        raise ValueError(f"sine-cosine positions want a width that is a multiple of 4, was given {width}")
    return torch.cat([_sincos(axis, width // 2) for axis in _axes(grid)], dim=1).float()


def sincos_3d(grid: Grid, width: int, uniform: bool = True) -> Tensor:
    """Fixed embedding ``[t*h*w, width]`` of V-JEPA (Bardes et al. 2024): time, row, column (each sine | cosine).

    ``uniform`` gives each axis 2 * ceil(width/6) dimensions and cuts the whole to the width (the releases); otherwise
    time takes one half and row and column a quarter each.
    """
    if not uniform and width % 8:
        raise InputError(f"sincos positions want a width that is a multiple of 8, not {width}; or give sincos_uniform")
    widths = (2 * -(-width // 6),) * 3 if uniform else (width // 2, width // 4, width // 4)
    return torch.cat([_sincos(axis, part) for axis, part in zip(_axes(grid), widths)], dim=1)[:, :width].float()


def _added(form: Form, grid: Grid, width: int) -> Tensor | None:
    """The embedding ``[t*h*w, width]`` that a form adds to tokens; None where it turns queries and keys instead."""
    if form == "sincos_2d":
        if grid[0] != 1:
            raise InputError(f"sincos_2d positions are for images, not for {grid[0]} steps; give sincos_uniform")
        return sincos_2d(grid[1:], width)
    return sincos_3d(grid, width, form == "sincos_uniform") if form.startswith("sincos") else None


class GridPositions(nn.Module):
    """Positions of the tokens of a video, for the encoder and the predictor alike.

    Args:
        form: "sincos" and "sincos_uniform" (V-JEPA) and, for images, "sincos_2d" (I-JEPA) are added to the tokens;
            "rotary_tiled" (V-JEPA 2) and "rotary_interleaved" (V-JEPA 2.1) turn queries and keys.
        grid: tubelets, rows and columns of the longest video.
        width: of the tokens.
        heads: attention heads.
    """

    def __init__(self, form: Form, grid: Grid, width: int, heads: int) -> None:
        super().__init__()
        self.form = check_choice("positions", form, get_args(Form))
        self.grid, self.head = grid, width // heads
        # without gradient, yet part of the weights: what a checkpoint stores is what its model was trained with
        table = _added(form, grid, width)
        self.register_buffer("table", None if table is None else table[None])

    def add(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens ``[B,L,width]`` with the embeddings of ``index [B,L]`` (the first L by default), if they are added."""
        if self.table is None:
            return x
        return x + (self.table[:, : x.shape[1]] if index is None else self.table[0, index])

    def rotation(self, x: Tensor, index: Tensor | None = None) -> Rotate | None:
        """What turns the queries and keys ``[B,heads,L,head]`` of tokens ``x [B,L,width]`` at ``index [B,L]``.

        One table, in float32, for all layers and heads; None where positions are added.
        """
        if self.table is not None:
            return None
        # the angles of each position once, however many rows keep it
        length = x.shape[1] if index is None else math.prod(self.grid)
        everything = torch.arange(length, device=x.device)
        cos, sin = rotary_table_3d(everything, self.grid, self.head, self.form == "rotary_tiled")
        table = (cos, sin) if index is None else (cos[index].unsqueeze(1), sin[index].unsqueeze(1))
        return lambda queries: rotate_3d(queries, table)
