"""What a probe reads without any encoder: the pixels themselves, fewer of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import InputError
from jepa.models.encoders import Encoder


class PixelEncoder(Encoder):
    """Down-sampled, standardised pixels as latents: what every encoder must beat. It has nothing to train.

    ``video [B,T,C,H,W]`` to ``z [B,T/frames,1,frames*channels*size*size]``: each frame is averaged down without
    aliasing. A probe that cannot tell the order of steps sees motion only where ``frames`` puts several side by side.

    Args:
        size: height and width that frames are brought down to.
        frame: height and width of the frames, one number where they are equal.
        frames: consecutive frames whose pixels make one latent.
        grey: average the colours, so that a pixel is one number.
    """

    def __init__(self, size: int = 16, frame: int | tuple[int, int] = 64, frames: int = 1, grey: bool = False) -> None:
        super().__init__(frame, (0.5,) * 3, (0.5,) * 3, norm=False)
        if not 1 <= size <= min(self.frame) or frames < 1:
            given = f"size={size}, frames={frames} of {self.frame[0]}x{self.frame[1]} pixels"
            raise InputError(f"PixelEncoder was given {given}: expected at least 1, and a size of at most the frame's")
        self.side, self.frames, self.grey = size, frames, grey
        self.dim, self.grid = frames * (1 if grey else 3) * size**2, (1, 1)
        # weights identify a feature cache, and this has none
        self.register_buffer("settings", torch.tensor([size, frames, int(grey)]))

    def features(self, images: Tensor) -> Tensor:
        images = images.mean(1, keepdim=True) if self.grey else images
        small = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return small.flatten(1)[:, None]

    def forward(self, video: Tensor) -> Tensor:
        if video.ndim == 5 and video.shape[1] % self.frames:
            raise InputError(
                f"PixelEncoder(frames={self.frames}) was given {video.shape[1]} frames: expected a multiple, change "
                "frames"
            )
        return super().forward(video).unflatten(1, (-1, self.frames)).flatten(2).unsqueeze(2)
