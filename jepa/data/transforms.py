"""What happens to pixels on the device. Pixels stay uint8 until the last step, which makes them floats."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # of the pretrained backbones
    "half": ((0.5,), (0.5,)),  # to [-1,1]
}


def normalise(video: Tensor, statistics: Literal["imagenet", "half"] = "half") -> Tensor:
    """uint8 [...,C,H,W] in 0..255 -> float32 with the mean and standard deviation named."""
    mean, std = (torch.tensor(values, device=video.device).view(-1, 1, 1) for values in STATISTICS[statistics])
    return (video / 255.0 - mean) / std


def resize(video: Tensor, size: int) -> Tensor:
    """uint8 [...,C,H,W] -> uint8 [...,C,size,size], bilinear with antialiasing; unchanged where it has that size."""
    if video.shape[-2:] == (size, size):
        return video
    flat = video.flatten(0, -4) if video.ndim > 3 else video
    return functional.resize(flat, [size, size], antialias=True).view(*video.shape[:-2], size, size)


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
