"""Where the ticks of an axis go and how values become places on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """Maps values of ``low..high`` to places of ``start..end``, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: np.ndarray | float) -> np.ndarray:
        low, high, value = (np.log10(part) if self.log else np.asarray(part) for part in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """About ``count`` round values within the axis."""
        if self.log:
            return _log_ticks(self.low, self.high, count)
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def value_axis(values: np.ndarray, start: float, end: float, log: bool | None = None) -> Axis:
    """An axis around finite ``values [n]``, logarithmic where ``log`` (None: over two decades) and all are positive."""
    low, high = float(values.min()), float(values.max())
    if log is None:
        log = low > 0 and high / low > 100
    if log and low > 0:
        margin = max((high / low) ** 0.05, 1.02)
        return Axis(low / margin, high * margin, start, end, log=True)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(0.0 if 0 <= low < 0.3 * high else low - margin, high + margin, start, end)


def _round_step(raw: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten that is not smaller than ``raw``."""
    scale = 10.0 ** math.floor(math.log10(raw))
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw * (1 - 1e-9))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    stride = max(1, math.ceil(len(ticks) / (count + 1)))
    return ticks[::stride]
