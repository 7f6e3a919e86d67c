"""Cut first, resize second, in uint8: where a clip is cut, and the one copy of its pixels that is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from jepa.data.random import fold, unit
from jepa.data.transforms import resize
from jepa.errors import InputError

TRIES = 10


@dataclass(frozen=True)
class Pixels:
    """What becomes of the frames of a clip, all alike.

    Args:
        size: Height and width of the result, or one number for both.
        scale: Smallest and largest part of the area of a frame that a random crop takes.
        aspect: Smallest and largest width to height of a random crop, before it is resized.
        flip: Mirror every other random clip. Not where labels tell left from right.
    """

    size: int | tuple[int, int] = 224
    scale: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.75, 1.35)
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale of the random crop is {list(self.scale)}, expected 0 < low <= high <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise InputError(f"aspect of the random crop is {list(self.aspect)}, expected 0 < low <= high")
        if min(self.shape) < 1:
            raise InputError(f"size is {self.size}, expected a height and a width of at least 1")

    @property
    def shape(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)


class Box(NamedTuple):
    """A part of a frame, in pixels of the file."""

    top: int
    left: int
    height: int
    width: int

    def within(self, outer: Box) -> Box:
        """The same box in what is left of the frame when ``outer`` is cut out of it."""
        return self._replace(top=self.top - outer.top, left=self.left - outer.left)


def random_box(
    height: int,
    width: int,
    key: int,
    scale: tuple[float, float] = (0.3, 1.0),
    aspect: tuple[float, float] = (0.75, 1.35),
) -> Box:
    """The box of a random resized crop: a uniform part of the area, a log-uniform width to height, a uniform place.

    Ten boxes are tried, the first that lies within the frame is taken; if none does, the centred box of the largest
    area whose aspect is allowed (Szegedy et al. 2015, in the form that I-JEPA and V-JEPA are trained with).
    """
    chance = unit(fold(key, np.arange(4 * TRIES))).reshape(TRIES, 4)
    area = height * width * (scale[0] + chance[:, 0] * (scale[1] - scale[0]))
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(low + chance[:, 1] * (high - low))
    widths, heights = np.round(np.sqrt(area * ratio)).astype(int), np.round(np.sqrt(area / ratio)).astype(int)
    within = (0 < widths) & (widths <= width) & (0 < heights) & (heights <= height)
    if not within.any():
        return centre_box(height, width, min(max(width / height, aspect[0]), aspect[1]))
    first = int(within.argmax())
    tall, wide = int(heights[first]), int(widths[first])
    top, left = int(chance[first, 2] * (height - tall + 1)), int(chance[first, 3] * (width - wide + 1))
    return Box(top, left, tall, wide)


def centre_box(height: int, width: int, aspect: float) -> Box:
    """The largest centred box of this width to height: what is left of a frame whose short side is resized to fit and
    whose long side is cut."""
    tall, wide = min(height, round(width / aspect)), min(width, round(height * aspect))
    tall, wide = max(tall, 1), max(wide, 1)
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def side_boxes(height: int, width: int, aspect: float, views: int) -> list[Box]:
    """Boxes as large as :func:`centre_box`, spread evenly along the long side of a frame, from its one end to the
    other: the middle one is the centre box. One box is the centre box."""
    centre = centre_box(height, width, aspect)
    if views == 1:
        return [centre]
    down, right = height - centre.height, width - centre.width
    return [
        centre._replace(top=down * number // (views - 1), left=right * number // (views - 1)) for number in range(views)
    ]


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of them."""
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom, right = max(box.top + box.height for box in boxes), max(box.left + box.width for box in boxes)
    return Box(top, left, bottom - top, right - left)


def cut(pixels: np.ndarray, box: Box, size: tuple[int, int], flip: bool = False) -> np.ndarray:
    """The box of every frame of uint8 [T,H,W,C], resized to (height, width), mirrored if ``flip``: uint8 [T,h,w,C].

    The box is a view of the decoder's memory, channels last: the layout that torch resizes in uint8 by vector
    instructions. It differs from the same resize in float32 by at most one grey level.
    """
    view = pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]
    video = resize(torch.from_numpy(view).permute(0, 3, 1, 2), size)
    video = video.flip(-1) if flip else video
    return np.ascontiguousarray(video.permute(0, 2, 3, 1).numpy())
