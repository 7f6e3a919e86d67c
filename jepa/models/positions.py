"""Where a token is: rotary indices for time, sine-cosine embeddings for space."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(time: Tensor, head: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[L, head/2]`` of rotary embedding (Su et al. 2021) at integer times ``[L]``.

    Always float32: in bfloat16 the angles of late frames are wrong by hundredths of a radian.
    """
    omega = base ** (-torch.arange(0, head, 2, device=time.device, dtype=torch.float32) / head)
    angle = time.float()[:, None] * omega
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn adjacent pairs of ``x [...,L,head]`` by the table's angles ``[L, head/2]``."""
    cos, sin = (t.to(x.dtype) for t in table)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed embedding ``[h*w, width]``: the first half encodes the row, the second the column (each sine | cosine)."""
    if width % 4:
        raise ValueError(f"sine-cosine positions want a width that is a multiple of 4, was given {width}")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    parts = []
    for axis in (rows, columns):
        angle = axis.flatten().double()[:, None] * omega
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()
