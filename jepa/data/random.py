"""Numbers drawn by hashing: each is a pure function of a seed and of its own number, so nothing depends on an order.

The keys of masks are made likewise; here is what is drawn from seeds and from the int64 keys of samples. Bits are
uint64, of any shape.
"""

from __future__ import annotations

import numpy as np

from jepa.masks import random

GOLDEN = np.uint64(random.GOLDEN)
ALONE = -1  # folded into bits, it only mixes them


def bits(seed: int, numbers: np.ndarray) -> np.ndarray:
    """64 random bits for every number (int64): with one seed, different numbers always get different bits."""
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        return fold(start + (_unsigned(numbers) + np.uint64(1)) * GOLDEN, ALONE).reshape(np.shape(numbers))


def fold(key: np.ndarray | int, value: np.ndarray | int) -> np.ndarray:
    """New bits from bits (or int64 keys) and what tells them apart: one key gives different values different bits."""
    with np.errstate(over="ignore"):  # numpy minds it for single numbers
        return random.fold(_unsigned(key), value if isinstance(value, int) else _unsigned(value))


def unit(drawn: np.ndarray) -> np.ndarray:
    """Bits -> float64 in [0, 1)."""
    return (drawn >> np.uint64(11)).astype(np.float64) / 2.0**53


def _unsigned(value: np.ndarray | int) -> np.ndarray:
    return np.asarray(value).astype(np.uint64)
