"""Colours that colour-blind readers can tell apart.

Lines and marks use the palette of Okabe and Ito (2008), held in the page's style sheet. Positions use a square of
colours: blue to orange from left to right (a pair that every common form of colour blindness keeps apart), dark to
light from bottom to top, mixed in OKLab (Ottosson, 2020) so that equal steps look equal.
"""

from __future__ import annotations

import numpy as np

CORNERS = np.array(  # sRGB, [bottom/top, left/right, 3]
    [[[26, 56, 160], [172, 44, 4]], [[112, 196, 255], [255, 196, 64]]], dtype=np.float64
)
_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def position_colours(points: np.ndarray) -> np.ndarray:
    """Points ``[...,2]`` of the picture's unit square (y down) to sRGB ``uint8 [...,3]``."""
    x, y = np.moveaxis(np.clip(np.asarray(points, dtype=np.float64), 0.0, 1.0), -1, 0)
    x, up = x[..., None], 1.0 - y[..., None]
    low, high = _to_oklab(CORNERS)
    mixed = (1 - up) * ((1 - x) * low[0] + x * low[1]) + up * ((1 - x) * high[0] + x * high[1])
    return _from_oklab(mixed)


def _to_oklab(colour: np.ndarray) -> np.ndarray:
    value = colour / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _LMS.T) @ _LAB.T


def _from_oklab(lab: np.ndarray) -> np.ndarray:
    linear = ((lab @ np.linalg.inv(_LAB).T) ** 3) @ np.linalg.inv(_LMS).T
    linear = np.clip(linear, 0.0, 1.0)
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255.0 * np.clip(value, 0.0, 1.0)).astype(np.uint8)
