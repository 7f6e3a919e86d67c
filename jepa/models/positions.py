"""Where a token is: rotary indices for time, rotary or sine-cosine positions on grids of patches and of tubelets.

Grids are ``(t, h, w)``; a token's index is its place in raster order, ``(t * rows + row) * columns + column``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_choice
from jepa.models.layers import Rotate

Grid = tuple[int, int, int]
Table = tuple[Tensor, Tensor]  # cosines and sines
Form = Literal["sincos_2d", "sincos", "sincos_uniform", "rotary_tiled", "rotary_interleaved", "rotary_interpolated"]
TRAINED_SIDE = 16  # rows and columns of tokens that interpolated positions are laid over: 256 pixels in patches of 16


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


def rotary_grid(
    grid: Grid, head: int, form: str = "rotary_interleaved", device: torch.device | str | None = None
) -> Table:
    """Cosines and signed sines ``[t*h*w, n]`` of the rotary positions of V-JEPA 2 for every token of a grid.

    Time, row and column turn ``2 * floor(floor(head/3) / 2)`` dimensions each, in this order; what is left of an even
    head is padded with the identity, so that n = head, and of an odd one n = head - 1. Interleaved, both dimensions of
    the adjacent pair i turn by position * 10000^(-2i/d), as in V-JEPA 2.1. Tiled, dimension j turns by frequency
    j mod d/2, whatever its pair: no rotation, but what the released weights of V-JEPA 2 were trained with.
    Interpolated, as interleaved, with rows and columns laid over those of :data:`TRAINED_SIDE` tokens (V-JEPA 2.1).
    Always float32, as :func:`rotary_table`.
    """
    width = 2 * (head // 3 // 2)
    rest = (head - head % 2) - 3 * width
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for axis, side in enumerate(grid):
        place = torch.arange(side, device=device, dtype=torch.float32)
        if form == "rotary_interpolated" and axis and side > 1:
            place = place * ((TRAINED_SIDE - 1) / (side - 1))
        shape = [side if other == axis else 1 for other in range(3)]
        for part, table in zip(parts, rotary_table(place, width)):
            table = table.repeat(1, 2) if form == "rotary_tiled" else table.repeat_interleave(2, dim=1)
            part.append(table.view(*shape, width).expand(*grid, width))
    parts[0].append(torch.ones(*grid, rest, device=device))
    parts[1].append(torch.zeros(*grid, rest, device=device))
    cos, sin = (torch.cat(part, dim=-1).flatten(0, 2) for part in parts)
    return cos, torch.stack((-sin[:, 0::2], sin[:, 1::2]), dim=-1).flatten(1)


def rotary_table_3d(index: Tensor, grid: Grid, head: int, tiled: bool) -> Table:
    """Cosines and signed sines ``[..., n]`` of :func:`rotary_grid` at token numbers ``[...]``."""
    cos, sin = rotary_grid(grid, head, "rotary_tiled" if tiled else "rotary_interleaved", index.device)
    return cos[index], sin[index]


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


class Rotation:
    """Turns queries and keys ``[...,B,heads,L,head]`` by a table ``[B,1,L,n]`` of :func:`rotary_grid`.

    Made once per forward pass and shared by all layers. The angles stay float32 and are rounded anew where a layer
    computes in less: a block whose activations are computed again may not change what it was given, or compilers break
    the graph there. Where pairs turn as one, and in float32, they are multiplied as complex numbers: one pass over the
    memory instead of three.
    """

    def __init__(self, table: Table, pairs: bool, head: int) -> None:
        self.table = table
        self.complex: Tensor | None = None
        # compilers fuse the three passes, and know no complex numbers
        if pairs and head % 2 == 0 and not torch.compiler.is_compiling():
            self.complex = torch.complex(table[0][..., 0::2].contiguous(), table[1][..., 1::2].contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        if self.complex is not None and x.dtype == torch.float32:
            turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * self.complex
            return torch.view_as_real(turned).flatten(-2)
        return rotate_3d(x, self.table)


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
        raise InputError(f"sincos_2d positions want a width that is a multiple of 4, not {width}; choose another width")
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

    Clips may be of any grid where positions are rotary; where they are added, a clip may be shorter than the longest,
    whose first steps it has.

    Args:
        form: "sincos" and "sincos_uniform" (V-JEPA) and, for images, "sincos_2d" (I-JEPA) are added to the tokens;
            "rotary_tiled" (V-JEPA 2), "rotary_interleaved" and "rotary_interpolated" (V-JEPA 2.1) turn queries and
            keys, the last by places that are relative to the height and width of the clip.
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

    @property
    def rotary(self) -> bool:
        return self.table is None

    def add(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens ``[B,L,width]`` with the embeddings of ``index [B,L]`` (the first L by default), if they are added."""
        if self.table is None:
            return x
        return x + (self.table[:, : x.shape[1]] if index is None else self.table[0, index])

    def rotation(self, x: Tensor, index: Tensor | None = None, grid: Grid | None = None) -> Rotate | None:
        """What turns the queries and keys ``[...,B,heads,L,head]`` of tokens ``x [B,L,width]`` at ``index [B,L]``.

        One table, in float32, for all layers and heads; None where positions are added. ``grid`` is that of the clip,
        by default that of the longest video; without an index, x are its first L tokens.
        """
        if self.table is not None:
            return None
        # the angles of each position once, however many rows keep it
        cos, sin = rotary_grid(self.grid if grid is None else grid, self.head, self.form, x.device)
        where = slice(0, x.shape[1]) if index is None else index
        table = (cos[where], sin[where])
        if index is not None:
            table = (table[0].unsqueeze(1), table[1].unsqueeze(1))  # the same for all heads
        return Rotation(table, self.form != "rotary_tiled", self.head)
