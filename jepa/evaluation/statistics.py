"""Intervals and tests for success counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054


def wilson(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927); 95 % by default. Without trials it is (0, 1)."""
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, was given {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    rate, extra = successes / trials, z * z / trials
    centre = (rate + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(rate * (1 - rate) / trials + extra / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that both succeed equally often (McNemar 1947; binomial form).

    Args:
        only_first: pairs that only the first solved
        only_second: pairs that only the second solved
    """
    trials = only_first + only_second
    tail = sum(math.comb(trials, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**trials)


def paired_difference(
    both: int, only_first: int, only_second: int, neither: int, z: float = _Z95
) -> tuple[float, float, float]:
    """Rate of the first minus rate of the second on the same pairs, with its interval (Newcombe 1998, method 10)."""
    trials = both + only_first + only_second + neither
    if trials == 0:
        return 0.0, -1.0, 1.0
    first, second = both + only_first, both + only_second
    p, q = first / trials, second / trials
    (p_low, p_high), (q_low, q_high) = wilson(first, trials, z), wilson(second, trials, z)
    phi = _correlation(both, only_first, only_second, neither)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = p - q
    low = difference - reach(p - p_low, q_high - q)
    high = difference + reach(p_high - p, q - q_low)
    return difference, max(-1.0, low), min(1.0, high)


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Newcombe's continuity-corrected phi of the 2x2 table of outcomes."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    product, trials = both * neither - only_first * only_second, both + only_first + only_second + neither
    if product > 0:
        product = max(product - trials / 2, 0.0)
    return product / math.sqrt(margins)


def bootstrap(
    values: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean (Efron 1979); None without values."""
    if not len(values):
        return None
    data = np.asarray(values, dtype=np.float64)
    index = np.random.default_rng(seed).integers(0, len(data), size=(draws, len(data)))
    low, high = np.quantile(data[index].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
