"""What happens to pixels on the device. They stay uint8: the encoder, which knows its statistics, makes them floats."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional


def resize(video: Tensor, size: int | tuple[int, int]) -> Tensor:
    """uint8 [...,C,H,W] -> uint8 [...,C,h,w], bilinear with antialiasing; unchanged where it has that size already.

    ``size`` is the height and the width, or one number for both.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if video.shape[-2:] == (height, width):
        return video
    flat = video.flatten(0, -4) if video.ndim > 3 else video
    return functional.resize(flat, [height, width], antialias=True).view(*video.shape[:-2], height, width)


def random_shift(video: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Shift every window of [B,T,C,H,W] by at most ``pixels`` in both directions, the same for all its frames.

    The border is repeated: the random shifts of DrQ (Yarats et al. 2021). ``generator`` is on the CPU.
    """
    batch, height, width = video.shape[0], *video.shape[-2:]
    moves = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator).to(video.device)
    rows = (torch.arange(height, device=video.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=video.device) + moves[1]).clamp(0, width - 1)
    every = torch.arange(batch, device=video.device)[:, None, None]
    return video[every, :, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 4, 1, 2)
